//! The gRPC server: `shifter.v1`, `grpc.health.v1` and reflection on a unix socket.

mod convert;
mod events;
#[cfg(test)]
pub(crate) mod fake;
mod gate;
mod health;
mod observe;
mod peer;
mod recording;
mod rollouts;
mod services;
mod socket;
mod status;
mod stream;
#[cfg(test)]
pub(crate) mod testbed;
#[cfg(test)]
mod tests;
mod watch;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::watch as channel;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{service::InterceptorLayer, transport::Server};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    proto::{
        self, MESSAGE_BYTES, admin_server::AdminServer, observe_server::ObserveServer,
        rollouts_server::RolloutsServer, services_server::ServicesServer,
    },
    reconcile::Controller,
    telemetry::Receipts,
};

pub use convert::desired_message;
pub use gate::Gate;
use gate::GateLayer;
pub use socket::{Socket, SocketError};

/// Becomes true, or loses its sender, when the server shall end.
pub type Shutdown = channel::Receiver<bool>;

/// Health service that says whether writes are stored.
pub const STORE_HEALTH: &str = "shifter.store";
/// The parts of the agent by name, and whether each does its work.
pub type Components = BTreeMap<&'static str, bool>;

/// Records listed where a request says no limit, and at most.
const DEFAULT_LIST: u32 = 100;
const MAX_LIST: u32 = 10_000;
/// How long requests under way may take once the server shall end.
const GRACE: Duration = Duration::from_secs(3);

/// How many records a request asks for.
fn list_limit(asked: u32) -> u32 {
    match asked {
        0 => DEFAULT_LIST,
        limit => limit.min(MAX_LIST),
    }
}

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("serving gRPC on the unix socket failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    #[error("building the reflection service failed: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// What the API is served from.
#[derive(Clone)]
pub struct Served {
    pub controller: Arc<dyn Controller>,
    pub receipts: Arc<Receipts>,
    /// What writes pass through.
    pub gate: Arc<Gate>,
    /// What `grpc.health.v1` tells of, beside the API itself.
    pub components: channel::Receiver<Components>,
}

/// What every service of the API works with.
#[derive(Clone)]
struct Context {
    controller: Arc<dyn Controller>,
    receipts: Arc<Receipts>,
    gate: Arc<Gate>,
    shutdown: Shutdown,
}

/// Serves the API on `socket` until `shutdown`; requests under way end first,
/// streams end at once.
pub async fn serve(socket: Socket, served: Served, shutdown: Shutdown) -> Result<(), ServeError> {
    let context = Context {
        controller: served.controller,
        receipts: served.receipts,
        gate: Arc::clone(&served.gate),
        shutdown: shutdown.clone(),
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_serving::<ServicesServer<services::ServicesApi>>()
        .await;
    let _store_health = follow_store(Arc::clone(&context.controller), health.clone());
    report(&health, &served.components).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let (listener, _place) = socket.into_listener()?;
    let server = Server::builder()
        .layer(InterceptorLayer::new(peer::admit))
        .layer(GateLayer(served.gate))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(
            ServicesServer::new(services::ServicesApi(context.clone()))
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES),
        )
        .add_service(
            ObserveServer::new(observe::ObserveApi(context.clone()))
                .max_encoding_message_size(MESSAGE_BYTES),
        )
        .add_service(
            RolloutsServer::new(rollouts::RolloutsApi(context.clone()))
                .max_encoding_message_size(MESSAGE_BYTES),
        )
        .add_service(AdminServer::new(observe::AdminApi(context)))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stopped(shutdown.clone()));
    let out_of_patience = async {
        stopped(shutdown).await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = server => ended?,
        () = out_of_patience => {}
        () = follow(health, served.components) => {}
    }
    Ok(())
}

/// Keeps the health of [`STORE_HEALTH`] as the store is, until it is dropped.
fn follow_store(controller: Arc<dyn Controller>, health: HealthReporter) -> AbortOnDrop {
    let task = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let status = match controller.store_problem() {
                None => ServingStatus::Serving,
                Some(_) => ServingStatus::NotServing,
            };
            health.set_service_status(STORE_HEALTH, status).await;
        }
    });
    AbortOnDrop(task)
}

/// A task that ends with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells of every component as it is now.
async fn report(health: &HealthReporter, components: &channel::Receiver<Components>) {
    let components = components.borrow().clone();
    for (name, works) in components {
        let status = match works {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        health.set_service_status(name, status).await;
    }
}

/// Tells of components as they change; never ends.
async fn follow(health: HealthReporter, mut components: channel::Receiver<Components>) {
    while components.changed().await.is_ok() {
        report(&health, &components).await;
    }
    std::future::pending().await
}

/// Waits until the server shall end.
async fn stopped(mut shutdown: Shutdown) {
    // An error says that the sender is gone, which is the end as well.
    let _ = shutdown.wait_for(|stop| *stop).await;
}
