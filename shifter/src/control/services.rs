//! `shifter.v1.Services`: reads and writes of services.

use std::{net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::{
    Context, convert,
    peer::Peer,
    status::reason,
    stopped,
    watch::{self, Resume},
};
use crate::{
    model::{CutRate, cut::DRAIN_RATE, text::parse_backend_addr},
    proto::{self, services_server::Services},
    reconcile::{
        Controller,
        controller::{ControlError, DrainEnd, NamedBackends, Receipt, WriteContext},
    },
};

type Answer<T> = Result<Response<T>, Status>;

/// How often the first flow under a generation is looked for.
const FIRST_FLOW_PAUSE: Duration = Duration::from_millis(5);

/// The service over the agent.
pub(super) struct ServicesApi(pub Context);

/// Runs what takes long off the threads that answer requests.
pub(super) async fn long<T: Send + 'static>(
    controller: &Arc<dyn Controller>,
    call: impl FnOnce(&dyn Controller) -> Result<T, ControlError> + Send + 'static,
) -> Result<T, ControlError> {
    let controller = Arc::clone(controller);
    tokio::task::spawn_blocking(move || call(&*controller))
        .await
        .unwrap_or_else(|error| {
            Err(ControlError::Internal(format!(
                "the call ended early: {error}"
            )))
        })
}

pub(super) fn write_context(
    peer: Peer,
    reason: String,
    request_id: String,
    etag: String,
) -> WriteContext {
    WriteContext {
        arrived: peer.arrived,
        actor: peer.actor,
        reason,
        request_id,
        etag: (!etag.is_empty()).then_some(etag),
        force: false,
        validate_only: false,
    }
}

impl ServicesApi {
    /// Counts a write and turns its result into the answer.
    fn answer(
        &self,
        verb: &'static str,
        result: Result<Receipt, ControlError>,
    ) -> Answer<proto::Receipt> {
        match result {
            Ok(receipt) => {
                self.0.receipts.record(verb, &receipt);
                Ok(Response::new(convert::receipt(receipt)))
            }
            Err(error) => Err(self.refusal(verb, error)),
        }
    }

    fn refusal(&self, verb: &'static str, error: ControlError) -> Status {
        self.0.receipts.record_refusal(verb, reason(&error).name());
        error.into()
    }

    /// It asks the host, whose nft may be slow, as an apply does.
    async fn change_backends(
        &self,
        verb: &'static str,
        named: Result<NamedBackends, ControlError>,
        drain: Option<DrainEnd>,
        context: WriteContext,
    ) -> Answer<proto::Receipt> {
        let change = move |controller: &dyn Controller| controller.drain(&named?, drain, &context);
        let result = long(&self.0.controller, change).await;
        self.answer(verb, result)
    }

    /// Waits until a flow was chosen under the receipt's generation, or notes
    /// in the receipt that none was.
    async fn await_first_flow(&self, receipt: &mut proto::Receipt, wait: Duration) {
        let look = async {
            loop {
                let found = self
                    .0
                    .controller
                    .first_flow(&receipt.service, receipt.generation);
                match found {
                    Ok(Some(first)) => return Ok(convert::first_flow(first)),
                    Ok(None) => tokio::time::sleep(FIRST_FLOW_PAUSE).await,
                    Err(error) => return Err(error.to_string()),
                }
            }
        };
        let none = || {
            format!(
                "no flow was chosen under generation {} within {} s; the weight is in force all the same",
                receipt.generation,
                wait.as_secs_f64()
            )
        };
        let found = tokio::select! {
            found = tokio::time::timeout(wait, look) => found.unwrap_or_else(|_| Err(none())),
            () = stopped(self.0.shutdown.clone()) => Err("the agent is ending, so the first flow was not waited for".to_owned()),
            () = self.0.gate.shut() => Err("the agent is being replaced, so the first flow was not waited for".to_owned()),
        };
        match found {
            Ok(first) => receipt.first_flow = Some(first),
            Err(warning) => receipt.warnings.push(warning),
        }
    }
}

#[tonic::async_trait]
impl Services for ServicesApi {
    async fn list(
        &self,
        _: Request<proto::ListServicesRequest>,
    ) -> Answer<proto::ListServicesResponse> {
        let views = long(&self.0.controller, |controller| controller.list()).await?;
        let short = |view| convert::without_prefixes(convert::service(view));
        let services = views.iter().map(short).collect();
        Ok(Response::new(proto::ListServicesResponse { services }))
    }

    async fn get(&self, request: Request<proto::GetServiceRequest>) -> Answer<proto::Service> {
        let name = request.into_inner().name;
        let view = long(&self.0.controller, move |controller| controller.get(&name)).await?;
        Ok(Response::new(convert::service(&view)))
    }

    async fn apply(&self, request: Request<proto::ApplyRequest>) -> Answer<proto::ApplyResponse> {
        let peer = Peer::of(&request)?;
        let message = request.into_inner();
        let mut context = write_context(peer, String::new(), message.request_id, message.etag);
        context.force = message.force;
        context.validate_only = message.validate_only;
        let validate_only = message.validate_only;
        let services = message.services;
        let many = services.len();
        let apply = move |controller: &dyn Controller| {
            if context.etag.is_some() && many != 1 {
                return Err(ControlError::Invalid(format!(
                    "an etag guards one service, and the request has {many}: apply them one by one or without it"
                )));
            }
            controller.apply(&specs(&services)?, &context)
        };
        // It asks the host, whose nft may be slow: a rollback needs this thread.
        let result = long(&self.0.controller, apply).await;
        let (receipts, changes) = result.map_err(|error| self.refusal("apply", error))?;
        if !validate_only {
            for receipt in &receipts {
                self.0.receipts.record("apply", receipt);
            }
        }
        Ok(Response::new(proto::ApplyResponse {
            receipts: receipts.into_iter().map(convert::receipt).collect(),
            changes: changes.into_iter().map(convert::change).collect(),
        }))
    }

    async fn plan(&self, request: Request<proto::PlanRequest>) -> Answer<proto::PlanResponse> {
        let message = request.into_inner();
        let changes = long(&self.0.controller, move |controller| {
            match (&message.weight, message.services.is_empty()) {
                (Some(weight), true) => {
                    let change = convert::weight_change(weight)?;
                    Ok(vec![controller.plan_weight(&change)?])
                }
                (None, false) => controller.plan(&specs(&message.services)?),
                _ => Err(ControlError::Invalid(
                    "a plan is of services or of one weight: give one of them".to_owned(),
                )),
            }
        })
        .await?;
        let changes = changes.into_iter().map(convert::change).collect();
        Ok(Response::new(proto::PlanResponse { changes }))
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteServiceRequest>,
    ) -> Answer<proto::Receipt> {
        let peer = Peer::of(&request)?;
        let message = request.into_inner();
        let mut context = write_context(peer, String::new(), message.request_id, message.etag);
        context.force = message.force;
        context.validate_only = message.validate_only;
        self.answer("delete", self.0.controller.delete(&message.name, &context))
    }

    async fn set_weight(
        &self,
        request: Request<proto::SetWeightRequest>,
    ) -> Answer<proto::Receipt> {
        let peer = Peer::of(&request)?;
        let message = request.into_inner();
        let prepared = convert::weight_change(&message).and_then(|change| {
            let wait =
                convert::seconds(message.wait_first_flow_seconds, "wait_first_flow_seconds")?;
            Ok((change, wait))
        });
        let (change, wait) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Err(self.refusal("set_weight", error)),
        };
        let mut context = write_context(peer, message.reason, message.request_id, message.etag);
        context.validate_only = message.validate_only;
        let result = self.0.controller.set_weight(&change, &context);
        let mut answer = self.answer("set_weight", result)?;
        let receipt = answer.get_mut();
        if !wait.is_zero() && !context.validate_only {
            self.await_first_flow(receipt, wait).await;
        }
        Ok(answer)
    }

    async fn confirm(&self, request: Request<proto::ConfirmRequest>) -> Answer<proto::Receipt> {
        let peer = Peer::of(&request)?;
        let message = request.into_inner();
        let context = write_context(peer, String::new(), message.request_id, message.etag);
        self.answer(
            "confirm",
            self.0.controller.confirm(&message.name, &context),
        )
    }

    async fn rollback(&self, request: Request<proto::RollbackRequest>) -> Answer<proto::Receipt> {
        let peer = Peer::of(&request)?;
        let message = request.into_inner();
        let context = write_context(peer, message.reason, message.request_id, String::new());
        let cut = match cut_rate(message.cut_per_second) {
            Ok(cut) => cut,
            Err(error) => return Err(self.refusal("rollback", error)),
        };
        let result =
            self.0
                .controller
                .rollback(&message.name, message.to_generation, cut, &context);
        self.answer("rollback", result)
    }

    async fn promote(&self, request: Request<proto::PromoteRequest>) -> Answer<proto::Receipt> {
        let peer = Peer::of(&request)?;
        let message = request.into_inner();
        let context = write_context(peer, message.reason, message.request_id, message.etag);
        self.answer(
            "promote",
            self.0.controller.promote(&message.name, &context),
        )
    }

    async fn drain(&self, request: Request<proto::DrainRequest>) -> Answer<proto::Receipt> {
        let peer = Peer::of(&request)?;
        let message = request.into_inner();
        let end = match drain_end(&message) {
            Ok(end) => end,
            Err(error) => return Err(self.refusal("drain", error)),
        };
        let mut context = write_context(peer, message.reason, message.request_id, message.etag);
        context.validate_only = message.validate_only;
        let named = named_backends(message.service, message.pool, &message.backend);
        self.change_backends("drain", named, Some(end), context)
            .await
    }

    async fn undrain(&self, request: Request<proto::UndrainRequest>) -> Answer<proto::Receipt> {
        let peer = Peer::of(&request)?;
        let message = request.into_inner();
        let mut context = write_context(peer, message.reason, message.request_id, message.etag);
        context.validate_only = message.validate_only;
        let named = named_backends(message.service, message.pool, &message.backend);
        self.change_backends("undrain", named, None, context).await
    }

    async fn explain(
        &self,
        request: Request<proto::ExplainRequest>,
    ) -> Answer<proto::ExplainResponse> {
        let message = request.into_inner();
        let explanation = long(&self.0.controller, move |controller| {
            let client: IpAddr = message.client.parse().map_err(|_| {
                ControlError::Invalid(format!(
                    "{:?} is no client: write an address, as in \"192.0.2.7\" or \"2001:db8::7\"",
                    message.client
                ))
            })?;
            let port = u16::try_from(message.client_port).map_err(|_| {
                ControlError::Invalid(format!(
                    "{} is no client port: write 1 to 65535, or 0 for any",
                    message.client_port
                ))
            })?;
            controller.explain(&message.name, client, (port != 0).then_some(port))
        })
        .await?;
        Ok(Response::new(convert::explanation(explanation)))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<proto::WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Answer<Self::WatchStream> {
        let message = request.into_inner();
        if !message.name.is_empty() && message.resume_version == 0 {
            self.0.controller.vip(&message.name)?;
        }
        let resume = match message.resume_version {
            0 => Resume::Present,
            version => Resume::After(version),
        };
        let stream = watch::start(&self.0, message.name, resume);
        Ok(Response::new(Box::pin(stream)))
    }
}

/// A pace of a request; 0 is none.
fn cut_rate(per_second: u32) -> Result<Option<CutRate>, ControlError> {
    match per_second {
        0 => Ok(None),
        flows => CutRate::per_second(flows)
            .map(Some)
            .map_err(|error| ControlError::Invalid(error.to_string())),
    }
}

/// What becomes of the flows that a drain leaves.
fn drain_end(message: &proto::DrainRequest) -> Result<DrainEnd, ControlError> {
    let rate = cut_rate(message.cut_per_second)?;
    match message.on_deadline.as_str() {
        "" | "keep" if rate.is_some() || message.deadline_seconds != 0.0 => {
            Err(ControlError::Invalid(
                "deadline_seconds and cut_per_second go with on_deadline \"reset\": write it, or leave them out and the flows stay".to_owned(),
            ))
        }
        "" | "keep" => Ok(DrainEnd::default()),
        "reset" => {
            let after = convert::seconds(message.deadline_seconds, "deadline_seconds")?;
            Ok(DrainEnd {
                cut: Some((after.as_secs_f64(), rate.unwrap_or(DRAIN_RATE))),
            })
        }
        word => Err(ControlError::Invalid(format!(
            "on_deadline {word:?} is unknown: write \"keep\", flows that are left then stay until they end, or \"reset\", they are ended"
        ))),
    }
}

/// Which backends a drain names.
fn named_backends(
    service: String,
    pool: i32,
    backend: &str,
) -> Result<NamedBackends, ControlError> {
    let backend = match backend {
        "" => None,
        text => Some(
            parse_backend_addr(text).map_err(|error| ControlError::Invalid(error.to_string()))?,
        ),
    };
    Ok(NamedBackends {
        service,
        pool: convert::pool(pool),
        backend,
    })
}

fn specs(messages: &[proto::ServiceSpec]) -> Result<Vec<crate::model::ServiceSpec>, ControlError> {
    messages.iter().map(convert::spec).collect()
}
