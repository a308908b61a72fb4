//! `shifter.v1.Rollouts`: what people tell rollouts, and what rollouts tell people.

use std::pin::Pin;

use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use super::{
    Context, convert,
    gate::leaving,
    peer::Peer,
    services::{long, write_context},
    status::reason,
    stopped,
};
use crate::{
    proto::{self, rollouts_server::Rollouts},
    reconcile::{
        Controller,
        controller::{ControlError, ReportFormat, RolloutCommand, StartRollout, WriteContext},
    },
};

type Answer<T> = Result<Response<T>, Status>;

/// Rollouts listed where a request says no limit, and at most.
const DEFAULT_LIST: u32 = 100;
const MAX_LIST: u32 = 10_000;
/// Responses that wait for the client.
const QUEUE: usize = 16;

/// The service over the agent.
pub(super) struct RolloutsApi(pub Context);

impl RolloutsApi {
    async fn command(
        &self,
        request: Request<proto::RolloutCommandRequest>,
        verb: &'static str,
        command: RolloutCommand,
    ) -> Answer<proto::Rollout> {
        let peer = Peer::of(&request)?;
        let message = request.into_inner();
        let context = write_context(peer, message.reason, message.request_id, String::new());
        let name = message.service;
        let told =
            move |controller: &dyn Controller| controller.command_rollout(&name, command, &context);
        match long(&self.0.controller, told).await {
            Ok(view) => Ok(Response::new(convert::rollout(view))),
            Err(error) => Err(self.refusal(verb, error)),
        }
    }

    fn refusal(&self, verb: &'static str, error: ControlError) -> Status {
        self.0.receipts.record_refusal(verb, reason(&error).name());
        error.into()
    }
}

#[tonic::async_trait]
impl Rollouts for RolloutsApi {
    async fn start(&self, request: Request<proto::StartRolloutRequest>) -> Answer<proto::Rollout> {
        let peer = Peer::of(&request)?;
        let message = request.into_inner();
        let context = WriteContext {
            validate_only: message.validate_only,
            ..write_context(peer, message.reason, message.request_id, message.etag)
        };
        let start = StartRollout {
            service: message.service,
            spec: (!message.rollout.is_empty()).then_some(message.rollout),
        };
        let begin = move |controller: &dyn Controller| controller.start_rollout(&start, &context);
        match long(&self.0.controller, begin).await {
            Ok(view) => Ok(Response::new(convert::rollout(view))),
            Err(error) => Err(self.refusal("rollout_start", error)),
        }
    }

    async fn get(&self, request: Request<proto::GetRolloutRequest>) -> Answer<proto::Rollout> {
        let message = request.into_inner();
        let view = long(&self.0.controller, move |controller| {
            controller.rollout(&message.service, message.id)
        })
        .await?;
        Ok(Response::new(convert::rollout(view)))
    }

    async fn list(
        &self,
        request: Request<proto::ListRolloutsRequest>,
    ) -> Answer<proto::ListRolloutsResponse> {
        let message = request.into_inner();
        let limit = match message.limit {
            0 => DEFAULT_LIST,
            limit => limit.min(MAX_LIST),
        };
        let views = long(&self.0.controller, move |controller| {
            controller.rollouts(&message.service, limit)
        })
        .await?;
        let rollouts = views.into_iter().map(convert::rollout).collect();
        Ok(Response::new(proto::ListRolloutsResponse { rollouts }))
    }

    async fn pause(
        &self,
        request: Request<proto::RolloutCommandRequest>,
    ) -> Answer<proto::Rollout> {
        self.command(request, "rollout_pause", RolloutCommand::Pause)
            .await
    }

    async fn resume(
        &self,
        request: Request<proto::RolloutCommandRequest>,
    ) -> Answer<proto::Rollout> {
        self.command(request, "rollout_resume", RolloutCommand::Resume)
            .await
    }

    async fn advance(
        &self,
        request: Request<proto::RolloutCommandRequest>,
    ) -> Answer<proto::Rollout> {
        self.command(request, "rollout_advance", RolloutCommand::Advance)
            .await
    }

    async fn retry(
        &self,
        request: Request<proto::RolloutCommandRequest>,
    ) -> Answer<proto::Rollout> {
        self.command(request, "rollout_retry", RolloutCommand::Retry)
            .await
    }

    async fn promote(
        &self,
        request: Request<proto::RolloutCommandRequest>,
    ) -> Answer<proto::Rollout> {
        self.command(request, "rollout_promote", RolloutCommand::Promote)
            .await
    }

    async fn abort(
        &self,
        request: Request<proto::RolloutCommandRequest>,
    ) -> Answer<proto::Rollout> {
        self.command(request, "rollout_abort", RolloutCommand::Abort)
            .await
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<proto::Rollout, Status>> + Send>>;

    async fn watch(&self, request: Request<proto::GetRolloutRequest>) -> Answer<Self::WatchStream> {
        let message = request.into_inner();
        let (name, asked) = (message.service, message.id);
        let controller = self.0.controller.clone();
        let shutdown = self.0.shutdown.clone();
        // Before the first look, so that nothing is missed in between.
        let mut newest = controller.version();
        let name_of_first = name.clone();
        let first = long(&controller, move |controller| {
            controller.rollout(&name_of_first, asked)
        })
        .await?;
        let (queue, responses) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let id = first.id;
            let mut view = first;
            let follow = async {
                loop {
                    let is_over = view.is_over && view.has_report;
                    if queue.send(Ok(convert::rollout(view))).await.is_err() || is_over {
                        return;
                    }
                    if newest.changed().await.is_err() {
                        return;
                    }
                    newest.borrow_and_update();
                    let name = name.clone();
                    let read = long(&controller, move |controller| controller.rollout(&name, id));
                    view = match read.await {
                        Ok(view) => view,
                        Err(error) => {
                            let _ = queue.send(Err(error.into())).await;
                            return;
                        }
                    };
                }
            };
            tokio::select! {
                () = follow => {}
                () = stopped(shutdown) => {
                    let _ = queue.try_send(Err(leaving()));
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }

    async fn get_report(
        &self,
        request: Request<proto::GetReportRequest>,
    ) -> Answer<proto::RolloutReport> {
        let message = request.into_inner();
        let format = match message.format.as_str() {
            "" | "json" => ReportFormat::Json,
            "markdown" => ReportFormat::Markdown,
            "html" => ReportFormat::Html,
            "recording" => ReportFormat::Recording,
            other => {
                return Err(ControlError::Invalid(format!(
                    "{other:?} is no form of a report: write \"json\", \"markdown\", \"html\" or \"recording\""
                ))
                .into());
            }
        };
        let (id, text, service) = long(&self.0.controller, move |controller| {
            let (id, text) = controller.rollout_report(&message.service, message.id, format)?;
            Ok((id, text, message.service))
        })
        .await?;
        Ok(Response::new(proto::RolloutReport { id, service, text }))
    }
}
