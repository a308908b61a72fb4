//! `shifter confirm`: keeps the weight that a dead-man guards.

use std::time::Duration;

use crate::proto::ConfirmRequest;

use super::{client::Client, failure::Failure, receipt, screen::Screen};

/// Keep the weight that a dead-man (--revert-after) guards.
#[derive(clap::Args, Debug)]
pub(super) struct Confirm {
    /// Name of the service.
    service: String,
    /// Refuse unless the service's etag is this one.
    #[arg(long, value_name = "ETAG", default_value = "")]
    if_match: String,
}

impl Confirm {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let request = ConfirmRequest {
            name: self.service,
            etag: self.if_match,
            request_id: String::new(),
        };
        let answer = client
            .write(Duration::ZERO, || {
                let (mut services, request) = (client.services(), request.clone());
                async move { services.confirm(request).await }
            })
            .await?;
        receipt::print(answer, client, screen).await
    }
}
