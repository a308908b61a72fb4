//! `shifter drain` and `shifter undrain`: whether backends are offered new flows.

use crate::model::duration;
use std::time::{Duration, Instant};

use crate::model::CutRate;
use crate::proto::{BackendStatus, DrainRequest, Pool, UndrainRequest};

use super::{EXIT_DONE, client::Client, failure::Failure, receipt, screen::Screen, text};

/// Flows were left when the time was over.
const EXIT_NOT_VERIFIED: u8 = 4;
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// The backends that a word names: SERVICE, SERVICE/POOL or SERVICE/POOL/BACKEND.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Named {
    service: String,
    pool: Pool,
    backend: String,
}

fn parse_named(text: &str) -> Result<Named, String> {
    let mut parts = text.splitn(3, '/');
    let service = parts.next().unwrap_or_default().to_owned();
    let pool = match parts.next() {
        None => Pool::Unspecified,
        Some("blue") => Pool::Blue,
        Some("green") => Pool::Green,
        Some(other) => {
            return Err(format!(
                "{other:?} is no pool: write SERVICE, SERVICE/blue or SERVICE/green/10.0.0.11:8443"
            ));
        }
    };
    let backend = parts.next().unwrap_or_default().to_owned();
    if service.is_empty() {
        return Err("the name of the service is missing: write SERVICE/POOL/BACKEND".to_owned());
    }
    Ok(Named {
        service,
        pool,
        backend,
    })
}

/// Offer backends no new flows; those that they have go on.
#[derive(clap::Args, Debug)]
pub(super) struct Drain {
    /// SERVICE, SERVICE/POOL or SERVICE/POOL/BACKEND.
    #[arg(value_name = "SERVICE[/POOL[/BACKEND]]", value_parser = parse_named)]
    named: Named,
    /// Wait until they carry no flow; exits with 4 if some are left at the deadline.
    #[arg(long)]
    wait: bool,
    /// How long to wait, and when what is left is reset.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration::parse)]
    deadline: Duration,
    /// What becomes of flows that are left then: kept, or ended by the agent.
    #[arg(long, value_name = "WORD", default_value = "keep", value_parser = ["keep", "reset"])]
    on_deadline: String,
    /// With `--on-deadline reset`: flows ended a second [default: 100/s].
    #[arg(long, value_name = "RATE")]
    cut: Option<CutRate>,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Refuse unless the service's etag is this one.
    #[arg(long, value_name = "ETAG", default_value = "")]
    if_match: String,
}

/// Offer backends new flows again.
#[derive(clap::Args, Debug)]
pub(super) struct Undrain {
    /// SERVICE, SERVICE/POOL or SERVICE/POOL/BACKEND.
    #[arg(value_name = "SERVICE[/POOL[/BACKEND]]", value_parser = parse_named)]
    named: Named,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Refuse unless the service's etag is this one.
    #[arg(long, value_name = "ETAG", default_value = "")]
    if_match: String,
}

impl Drain {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let resets = self.on_deadline == "reset";
        if self.cut.is_some() && !resets {
            return Err(Failure::Usage(
                "--cut goes with --on-deadline reset: add it, or leave --cut out and the flows stay".to_owned(),
            ));
        }
        let deadline_seconds = match resets {
            true => self.deadline.as_secs_f64(),
            false => 0.0,
        };
        let request = DrainRequest {
            service: self.named.service.clone(),
            pool: self.named.pool.into(),
            backend: self.named.backend.clone(),
            on_deadline: self.on_deadline,
            deadline_seconds,
            cut_per_second: self.cut.map_or(0, CutRate::get),
            reason: self.reason,
            etag: self.if_match,
            ..Default::default()
        };
        let answer = client
            .write(Duration::ZERO, || {
                let (mut services, request) = (client.services(), request.clone());
                async move { services.drain(request).await }
            })
            .await?;
        let code = receipt::print(answer, client, screen).await?;
        match self.wait {
            true => wait(client, &self.named, self.deadline, resets, screen).await,
            false => Ok(code),
        }
    }
}

impl Undrain {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let request = UndrainRequest {
            service: self.named.service.clone(),
            pool: self.named.pool.into(),
            backend: self.named.backend.clone(),
            reason: self.reason,
            etag: self.if_match,
            ..Default::default()
        };
        let answer = client
            .write(Duration::ZERO, || {
                let (mut services, request) = (client.services(), request.clone());
                async move { services.undrain(request).await }
            })
            .await?;
        receipt::print(answer, client, screen).await
    }
}

/// Waits until the named backends carry no flow.
async fn wait(
    client: &Client,
    named: &Named,
    deadline: Duration,
    resets: bool,
    screen: &mut Screen<'_>,
) -> Result<u8, Failure> {
    let begun = Instant::now();
    loop {
        // Counts are a second old at most: the first look waits for fresh ones.
        tokio::time::sleep(PAUSE + PAUSE / 5).await;
        let services = client.read(Some(&named.service)).await?;
        let backends = services.iter().flat_map(|service| &service.backends);
        let is_named = |b: &&BackendStatus| {
            (named.pool == Pool::Unspecified || b.pool() == named.pool)
                && (named.backend.is_empty() || b.address == named.backend)
        };
        let left: u64 = backends.filter(is_named).map(|b| b.live_flows).sum();
        let after = duration::about(begun.elapsed().as_secs_f64());
        if left == 0 {
            screen.message(&format!("drained after {after}"));
            return Ok(EXIT_DONE);
        }
        // The agent ends them, as long as the drain stands.
        let is_cut = resets && services.iter().any(|service| !service.cuts.is_empty());
        if begun.elapsed() >= deadline && !is_cut {
            screen.message(&format!(
                "{} left after {after}: they are kept",
                text::plural(left, "flow")
            ));
            return Ok(EXIT_NOT_VERIFIED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_pools_and_backends_are_named() {
        let named = parse_named("web/green/[2001:db8::1]:80").unwrap();
        assert_eq!((named.service.as_str(), named.pool), ("web", Pool::Green));
        assert_eq!(named.backend, "[2001:db8::1]:80");
        assert_eq!(parse_named("web").unwrap().pool, Pool::Unspecified);
        assert!(parse_named("web/red").is_err());
        assert!(parse_named("/blue").is_err());
    }
}
