//! `shifter shift`: changes the share of new flows that green gets.

use crate::model::duration;
use std::time::Duration;

use crate::proto::{SetWeightRequest, set_weight_request::ShareOf};

use super::{client::Client, failure::Failure, receipt, screen::Screen, share};

/// Change a service's weight: which share of NEW connections goes where.
#[derive(clap::Args, Debug)]
pub(super) struct Shift {
    /// Name of the service.
    service: String,
    #[command(flatten)]
    share: Share,
    /// Give the live pool all new connections again after this time, as in 10m, unless
    /// confirmed; in the kernel, agent alive or not.
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    revert_after: Option<Duration>,
    /// Put the service's cohorts in force, or suspend them; as they are where this is not given.
    #[arg(long, value_name = "ON|OFF", value_enum)]
    cohorts: Option<Switch>,
    /// Wait up to this time for the first flow under the new weight.
    #[arg(long, value_name = "TIME", value_parser = duration::parse, num_args = 0..=1, default_missing_value = "10s")]
    wait_first_flow: Option<Duration>,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Refuse unless the service's etag is this one.
    #[arg(long, value_name = "ETAG", default_value = "")]
    if_match: String,
}

/// Whether cohorts are in force.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Switch {
    On,
    Off,
}

/// The share, said of one pool.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct Share {
    /// Share of the pool that is not live: 5%, 0.05% or 1/3.
    #[arg(long, value_name = "SHARE", value_parser = share::parse)]
    candidate: Option<String>,
    /// Share of the green pool.
    #[arg(long, value_name = "SHARE", value_parser = share::parse)]
    green: Option<String>,
    /// Share of the blue pool.
    #[arg(long, value_name = "SHARE", value_parser = share::parse)]
    blue: Option<String>,
}

impl Share {
    pub fn message(self) -> Option<ShareOf> {
        self.candidate
            .map(ShareOf::Candidate)
            .or(self.green.map(ShareOf::Green))
            .or(self.blue.map(ShareOf::Blue))
    }
}

impl Shift {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let wait = self.wait_first_flow.unwrap_or_default();
        let request = SetWeightRequest {
            name: self.service,
            share_of: self.share.message(),
            revert_after_seconds: self.revert_after.unwrap_or_default().as_secs_f64(),
            reason: self.reason,
            etag: self.if_match,
            wait_first_flow_seconds: wait.as_secs_f64(),
            cohorts_on: self.cohorts.map(|switch| switch == Switch::On),
            ..Default::default()
        };
        let answer = client
            .write(wait, || {
                let (mut services, request) = (client.services(), request.clone());
                async move { services.set_weight(request).await }
            })
            .await?;
        receipt::print(answer, client, screen).await
    }
}
