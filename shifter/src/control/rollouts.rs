//! `shifter.v1.Rollouts`: what people tell rollouts, and what rollouts tell people.

use std::pin::Pin;

use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::{
    Context, convert, list_limit,
    peer::Peer,
    services::{long, write_context},
    status::reason,
    stream::{self, Ended, Queue},
};
use crate::{
    proto::{self, rollouts_server::Rollouts},
    reconcile::{
        Controller,
        controller::{
            ControlError, ReportFormat, RolloutCommand, RolloutView, StartRollout, WriteContext,
        },
    },
};

type Answer<T> = Result<Response<T>, Status>;

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
        let limit = list_limit(message.limit);
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
        // Before the first look, so that nothing is missed in between.
        let newest = self.0.controller.version();
        let name_of_first = name.clone();
        let first = long(&self.0.controller, move |controller| {
            controller.rollout(&name_of_first, asked)
        })
        .await?;
        let stream = stream::start(&self.0, QUEUE, move |context, queue| async move {
            follow(&context, name, first, newest, &queue).await
        });
        Ok(Response::new(Box::pin(stream)))
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

/// A rollout as it is, then as it becomes, until it is over.
async fn follow(
    context: &Context,
    name: String,
    first: RolloutView,
    mut newest: watch::Receiver<u64>,
    queue: &Queue<proto::Rollout>,
) -> Result<(), Ended> {
    let id = first.id;
    let mut view = first;
    loop {
        let is_over = view.is_over && view.has_report;
        let sent = queue.send(Ok(convert::rollout(view))).await;
        sent.map_err(|_| None::<Status>)?;
        if is_over {
            return Ok(());
        }
        newest.changed().await.map_err(|_| None::<Status>)?;
        newest.borrow_and_update();
        let name = name.clone();
        let read = long(&context.controller, move |c| c.rollout(&name, id)).await;
        view = read.map_err(|error| Some(Status::from(error)))?;
    }
}
