//! `shifter delete`: takes a service out.

use crate::model::duration;
use std::time::Duration;

use crate::proto::DeleteServiceRequest;

use super::{
    EXIT_DONE,
    client::Client,
    failure::Failure,
    screen::{Screen, Style},
};

/// Take a service out; its traffic then passes untouched.
#[derive(clap::Args, Debug)]
pub(super) struct Delete {
    /// Name of the service.
    service: String,
    /// Go ahead while flows are carried that would be cut.
    #[arg(long)]
    force: bool,
    /// Only say whether it would be done.
    #[arg(long)]
    dry_run: bool,
    /// Refuse unless the service's etag is this one.
    #[arg(long, value_name = "ETAG", default_value = "")]
    if_match: String,
}

impl Delete {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let request = DeleteServiceRequest {
            name: self.service.clone(),
            etag: self.if_match,
            validate_only: self.dry_run,
            force: self.force,
            request_id: String::new(),
        };
        let receipt = client
            .write(Duration::ZERO, || {
                let (mut services, request) = (client.services(), request.clone());
                async move { services.delete(request).await }
            })
            .await?;
        if screen.json() {
            screen.json_value(&receipt)?;
            return Ok(EXIT_DONE);
        }
        screen.line(&match self.dry_run {
            true => format!("{}: would be deleted", self.service),
            false => format!(
                "{}: deleted, generation {}, in {}",
                self.service,
                receipt.generation,
                duration::short(receipt.total_ns as f64)
            ),
        })?;
        for warning in &receipt.warnings {
            let word = screen.paint(Style::Loud, "warning:");
            screen.line(&format!("{word} {warning}"))?;
        }
        Ok(EXIT_DONE)
    }
}
