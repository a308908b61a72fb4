//! `shifter rollback`: back to the good split, at once.

use std::time::Duration;

use crate::{model::CutRate, proto::RollbackRequest};

use super::{client::Client, failure::Failure, receipt, screen::Screen};

/// Give the live pool all new connections again, at once.
#[derive(clap::Args, Debug)]
pub(super) struct Rollback {
    /// Name of the service.
    service: String,
    /// Restore the split of this generation instead.
    #[arg(long, value_name = "GENERATION", value_parser = clap::value_parser!(u32).range(1..))]
    to: Option<u32>,
    /// End the connections that the other pool still carries, so many a second:
    /// their clients connect anew, to the live pool. Without it they stay.
    #[arg(long, value_name = "RATE")]
    cut: Option<CutRate>,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

impl Rollback {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let request = RollbackRequest {
            name: self.service,
            to_generation: self.to.unwrap_or(0),
            reason: self.reason,
            request_id: String::new(),
            cut_per_second: self.cut.map_or(0, CutRate::get),
        };
        let answer = client
            .write(Duration::ZERO, || {
                let (mut services, request) = (client.services(), request.clone());
                async move { services.rollback(request).await }
            })
            .await?;
        receipt::print(answer, client, screen).await
    }
}
