//! `shifter promote`: the candidate takes all and becomes live.

use std::time::Duration;

use crate::proto::PromoteRequest;

use super::{client::Client, failure::Failure, receipt, screen::Screen};

/// Give the candidate 100% of new connections and make it the live pool.
#[derive(clap::Args, Debug)]
pub(super) struct Promote {
    /// Name of the service.
    service: String,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Refuse unless the service's etag is this one.
    #[arg(long, value_name = "ETAG", default_value = "")]
    if_match: String,
}

impl Promote {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let request = PromoteRequest {
            name: self.service,
            reason: self.reason,
            etag: self.if_match,
            request_id: String::new(),
        };
        let answer = client
            .write(Duration::ZERO, || {
                let (mut services, request) = (client.services(), request.clone());
                async move { services.promote(request).await }
            })
            .await?;
        receipt::print(answer, client, screen).await
    }
}
