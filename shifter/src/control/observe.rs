//! `shifter.v1.Observe` and `shifter.v1.Admin`: flows, counters, the agent.

use std::{
    pin::Pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use super::{
    Context, convert, events,
    gate::leaving,
    list_limit,
    peer::Peer,
    recording,
    services::{long, write_context},
    stopped,
};
use crate::model::text::parse_backend_addr;
use crate::{
    proto::{self, admin_server::Admin, observe_server::Observe},
    reconcile::{
        Controller,
        controller::{AuditQuery, ControlError, FlowQuery},
    },
};

type Answer<T> = Result<Response<T>, Status>;

/// Flows listed where a request says no limit.
const DEFAULT_FLOWS: usize = 1_000;
/// Flows listed at most.
const MAX_FLOWS: usize = 1_000_000;
/// Shortest interval of a stream of counters.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Observe over the agent.
pub(super) struct ObserveApi(pub Context);
/// Admin over the agent.
pub(super) struct AdminApi(pub Context);

fn flow_query(message: proto::ListFlowsRequest) -> Result<FlowQuery, ControlError> {
    let client = match message.client.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            ControlError::Invalid(format!(
                "{text:?} is no client: write an address, as in \"192.0.2.7\" or \"2001:db8::7\""
            ))
        })?),
    };
    let backend = match message.backend.as_str() {
        "" => None,
        text => Some(
            parse_backend_addr(text).map_err(|error| ControlError::Invalid(error.to_string()))?,
        ),
    };
    Ok(FlowQuery {
        pool: convert::pool(message.pool),
        service: (!message.service.is_empty()).then_some(message.service),
        backend,
        client,
        open_only: message.open_only,
        limit: match message.limit as usize {
            0 => DEFAULT_FLOWS,
            limit => limit.min(MAX_FLOWS),
        },
    })
}

fn stats(controller: &dyn Controller, service: &str) -> Result<proto::Stats, ControlError> {
    let views = if service.is_empty() {
        controller.list()?
    } else {
        vec![controller.get(service)?]
    };
    let info = controller.info()?;
    let at = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(proto::Stats {
        at_unix_seconds: at.map_or(0.0, |since| since.as_secs_f64()),
        services: views
            .iter()
            .map(|view| convert::without_prefixes(convert::service(view)))
            .collect(),
        verdicts: convert::verdicts(&info),
        table: Some(convert::table(
            &info.census,
            info.flow_capacity,
            info.table_memory_bytes,
        )),
    })
}

/// Of a stream that tells something again and again.
fn interval(seconds: f64) -> Result<Duration, ControlError> {
    match convert::seconds(seconds, "interval_seconds")? {
        Duration::ZERO => Ok(Duration::from_secs(1)),
        short if short < MIN_INTERVAL => Err(ControlError::Invalid(format!(
            "interval_seconds is {seconds}: write 0.1 or more, or 0 for 1"
        ))),
        interval => Ok(interval),
    }
}

#[tonic::async_trait]
impl Observe for ObserveApi {
    async fn list_flows(
        &self,
        request: Request<proto::ListFlowsRequest>,
    ) -> Answer<proto::ListFlowsResponse> {
        let query = flow_query(request.into_inner())?;
        let (flows, matched) = long(&self.0.controller, move |controller| {
            controller.flows(&query)
        })
        .await?;
        let flows = flows.into_iter().map(convert::flow).collect();
        Ok(Response::new(proto::ListFlowsResponse { flows, matched }))
    }

    type StreamStatsStream = Pin<Box<dyn Stream<Item = Result<proto::Stats, Status>> + Send>>;

    async fn stream_stats(
        &self,
        request: Request<proto::StreamStatsRequest>,
    ) -> Answer<Self::StreamStatsStream> {
        let message = request.into_inner();
        let interval = interval(message.interval_seconds)?;
        if !message.service.is_empty() {
            self.0.controller.vip(&message.service)?;
        }
        let (queue, responses) = mpsc::channel(1);
        let context = self.0.clone();
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(interval);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = tick.tick() => {}
                    () = queue.closed() => return,
                    () = stopped(context.shutdown.clone()) => {
                        // A client that does not read is not waited for.
                        let _ = queue.try_send(Err(leaving()));
                        return;
                    }
                }
                let service = message.service.clone();
                let stats = long(&context.controller, move |c| stats(c, &service)).await;
                let last = stats.is_err();
                if queue.send(stats.map_err(Status::from)).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }

    async fn list_events(
        &self,
        request: Request<proto::ListEventsRequest>,
    ) -> Answer<proto::ListEventsResponse> {
        let query = events::list_query(request.into_inner());
        let found = long(&self.0.controller, move |c| c.events(&query)).await?;
        let events = found.events.into_iter().map(convert::event).collect();
        Ok(Response::new(proto::ListEventsResponse { events }))
    }

    type StreamEventsStream = Pin<Box<dyn Stream<Item = Result<proto::Event, Status>> + Send>>;

    async fn stream_events(
        &self,
        request: Request<proto::StreamEventsRequest>,
    ) -> Answer<Self::StreamEventsStream> {
        let stream = events::start(&self.0, events::stream_query(request.into_inner()));
        Ok(Response::new(Box::pin(stream)))
    }

    type StreamRecordingStream =
        Pin<Box<dyn Stream<Item = Result<proto::RecordingLine, Status>> + Send>>;

    async fn stream_recording(
        &self,
        request: Request<proto::StreamRecordingRequest>,
    ) -> Answer<Self::StreamRecordingStream> {
        let message = request.into_inner();
        let interval = interval(message.interval_seconds)?;
        self.0.controller.vip(&message.service)?;
        let stream = recording::start(&self.0, message.service, interval);
        Ok(Response::new(Box::pin(stream)))
    }
}

#[tonic::async_trait]
impl Admin for AdminApi {
    async fn get_info(&self, _: Request<proto::GetInfoRequest>) -> Answer<proto::Info> {
        let view = long(&self.0.controller, |controller| controller.info()).await?;
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Response::new(convert::info(view, kernel.trim().to_owned())))
    }

    async fn freeze(
        &self,
        request: Request<proto::FreezeRequest>,
    ) -> Answer<proto::FreezeResponse> {
        let peer = Peer::of(&request)?;
        let message = request.into_inner();
        let context = write_context(peer, message.reason, String::new(), String::new());
        self.0.controller.freeze(&message.service, &context)?;
        Ok(Response::new(proto::FreezeResponse {}))
    }

    async fn unfreeze(
        &self,
        request: Request<proto::UnfreezeRequest>,
    ) -> Answer<proto::UnfreezeResponse> {
        let peer = Peer::of(&request)?;
        let message = request.into_inner();
        let context = write_context(peer, message.reason, String::new(), String::new());
        self.0.controller.unfreeze(&message.service, &context)?;
        Ok(Response::new(proto::UnfreezeResponse {}))
    }

    async fn list_audit(
        &self,
        request: Request<proto::ListAuditRequest>,
    ) -> Answer<proto::ListAuditResponse> {
        let message = request.into_inner();
        let query = AuditQuery {
            service: message.service,
            before: message.before,
            limit: list_limit(message.limit),
        };
        let records = long(&self.0.controller, move |c| c.audit(&query)).await?;
        let records = records.into_iter().map(convert::audit).collect();
        Ok(Response::new(proto::ListAuditResponse { records }))
    }
}
