//! `shifter freeze` and `shifter unfreeze`: refuse every write but a rollback.

use std::time::Duration;

use serde::Serialize;

use crate::proto::{FreezeRequest, UnfreezeRequest};

use super::{EXIT_DONE, client::Client, failure::Failure, screen::Screen};

/// Which services.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
struct Whom {
    /// Name of a service.
    service: Option<String>,
    /// All services, those to come too.
    #[arg(long)]
    all: bool,
}

impl Whom {
    fn name(&self) -> String {
        self.service.clone().unwrap_or_else(|| "*".to_owned())
    }
}

/// Refuse every change of a service but a rollback; a rollout holds.
#[derive(clap::Args, Debug)]
pub(super) struct Freeze {
    #[command(flatten)]
    whom: Whom,
    /// Why, for who meets it.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

/// Let changes through again.
#[derive(clap::Args, Debug)]
pub(super) struct Unfreeze {
    #[command(flatten)]
    whom: Whom,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

#[derive(Serialize)]
struct Answer<'a> {
    service: &'a str,
    frozen: bool,
}

fn print(name: &str, frozen: bool, screen: &mut Screen<'_>) -> Result<u8, Failure> {
    if screen.json() {
        let service = name;
        screen.json_value(&Answer { service, frozen })?;
        return Ok(EXIT_DONE);
    }
    let whom = match name {
        "*" => "all services",
        name => name,
    };
    screen.line(&match frozen {
        true => format!("{whom}: frozen; nothing but a rollback is let through"),
        false => format!("{whom}: no longer frozen"),
    })?;
    Ok(EXIT_DONE)
}

impl Freeze {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let name = self.whom.name();
        let request = FreezeRequest {
            service: name.clone(),
            reason: self.reason,
        };
        client
            .write(Duration::ZERO, || {
                let (mut admin, request) = (client.admin(), request.clone());
                async move { admin.freeze(request).await }
            })
            .await?;
        print(&name, true, screen)
    }
}

impl Unfreeze {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let name = self.whom.name();
        let request = UnfreezeRequest {
            service: name.clone(),
            reason: self.reason,
        };
        client
            .write(Duration::ZERO, || {
                let (mut admin, request) = (client.admin(), request.clone());
                async move { admin.unfreeze(request).await }
            })
            .await?;
        print(&name, false, screen)
    }
}
