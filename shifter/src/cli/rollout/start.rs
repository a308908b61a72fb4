//! `shifter rollout start`: what is said on the command line becomes the JSON that a
//! service's file would hold.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{follow::follow, show::show};
use crate::{
    cli::{EXIT_DONE, client::Client, failure::Failure, screen::Screen},
    model::CutRate,
    proto::StartRolloutRequest,
};

/// Begin a rollout, as the service's [service.rollout] says or as said here.
#[derive(clap::Args, Debug)]
pub struct Start {
    /// Name of the service.
    service: String,
    /// How: blue-green, canary, rolling, ab or cohort-first.
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// Steps of a canary, as 5%,25%,50%; also "pause", "pause 10m", "analyse 5m".
    #[arg(long, value_name = "STEPS", value_delimiter = ',')]
    steps: Vec<String>,
    /// Or: rise by so much each time.
    #[arg(long, value_name = "SHARE")]
    linear: Option<String>,
    /// Or: begin with so much and rise by a factor each time.
    #[arg(long, value_name = "SHARE")]
    exponential: Option<String>,
    /// The factor; 2 unless told otherwise.
    #[arg(long, value_name = "NUMBER")]
    factor: Option<u32>,
    /// How long each share is looked at.
    #[arg(long, value_name = "TIME")]
    interval: Option<String>,
    /// How long everything stays on the candidate before it is promoted.
    #[arg(long, value_name = "TIME")]
    bake: Option<String>,
    /// Keep the last share at the end, and leave promoting to a person.
    #[arg(long)]
    no_promote: bool,
    /// The kernel takes the weight back when the agent was away for so long.
    #[arg(long, value_name = "TIME")]
    lease: Option<String>,
    /// Roll back a step that takes so much longer than it should.
    #[arg(long, value_name = "TIME")]
    progress_deadline: Option<String>,
    /// After a rollback, end the flows that the candidate still carries, so many a second.
    #[arg(long, value_name = "RATE")]
    cut: Option<CutRate>,
    /// Of ab: the candidate's share; none where its cohorts alone shall see it, as 0%.
    #[arg(long, value_name = "SHARE")]
    split: Option<String>,
    /// Of ab: how long.
    #[arg(long, value_name = "TIME")]
    duration: Option<String>,
    /// Of rolling: the pool whose backends are updated.
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// Of rolling: backends that may be out at once.
    #[arg(long, value_name = "NUMBER")]
    max_unavailable: Option<u32>,
    /// Of rolling: spare backends that help out.
    #[arg(long, value_name = "NUMBER")]
    surge: Option<u32>,
    /// Of rolling: how long flows of a drained backend are waited for.
    #[arg(long, value_name = "TIME")]
    drain_deadline: Option<String>,
    /// Gates as JSON, as '[{"judge":"sequential"}]'.
    #[arg(long, value_name = "JSON")]
    gates: Option<String>,
    /// Say what it would do; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Follow it to its end.
    #[arg(long, conflicts_with = "dry_run")]
    watch: bool,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Refuse unless the service's etag is this one.
    #[arg(long, value_name = "ETAG", default_value = "")]
    if_match: String,
}

impl Start {
    /// What was said here, as JSON; `None`: nothing, the service's own holds.
    fn described(&self) -> Result<Option<String>, Failure> {
        let mut said = Map::new();
        let texts = [
            ("strategy", &self.strategy),
            ("linear", &self.linear),
            ("exponential", &self.exponential),
            ("interval", &self.interval),
            ("bake", &self.bake),
            ("lease", &self.lease),
            ("progress_deadline", &self.progress_deadline),
            ("split", &self.split),
            ("duration", &self.duration),
            ("pool", &self.pool),
            ("drain_deadline", &self.drain_deadline),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                said.insert(key.to_owned(), json!(text));
            }
        }
        if let Some(cut) = self.cut {
            said.insert("cut".to_owned(), json!(cut.to_string()));
        }
        for (key, number) in [
            ("factor", self.factor),
            ("max_unavailable", self.max_unavailable),
            ("surge", self.surge),
        ] {
            if let Some(number) = number {
                said.insert(key.to_owned(), json!(number));
            }
        }
        if !self.steps.is_empty() {
            let steps: Vec<&str> = self.steps.iter().map(|step| step.trim()).collect();
            said.insert("steps".to_owned(), json!(steps));
        }
        if self.no_promote {
            said.insert("promote".to_owned(), Value::Bool(false));
        }
        if let Some(gates) = &self.gates {
            let gates: Value = serde_json::from_str(gates)
                .map_err(|error| Failure::Usage(format!("--gates is no JSON: {error}")))?;
            said.insert("gates".to_owned(), gates);
        }
        if said.is_empty() {
            return Ok(None);
        }
        if !said.contains_key("strategy") {
            return Err(Failure::Usage(
                "what is said here replaces the service's [service.rollout] whole, so it needs --strategy: blue-green, canary, rolling, ab or cohort-first".to_owned(),
            ));
        }
        Ok(Some(Value::Object(said).to_string()))
    }

    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let request = StartRolloutRequest {
            rollout: self.described()?.unwrap_or_default(),
            service: self.service.clone(),
            reason: self.reason,
            etag: self.if_match,
            validate_only: self.dry_run,
            request_id: String::new(),
        };
        let rollout = client
            .write(Duration::ZERO, || {
                let (mut rollouts, request) = (client.rollouts(), request.clone());
                async move { rollouts.start(request).await }
            })
            .await?;
        if self.watch {
            return follow(client, &self.service, rollout.id, screen).await;
        }
        show(&rollout, screen)?;
        Ok(EXIT_DONE)
    }
}
