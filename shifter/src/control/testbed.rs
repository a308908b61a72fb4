//! A real server on a unix socket over an agent in memory.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime::Runtime, sync::watch, task::JoinHandle};
use tonic::transport::{Channel, Endpoint};

use super::{Components, Gate, ServeError, Served, Socket, fake::FakeAgent, serve};
use crate::{
    proto::{
        ApplyRequest, BackendSpec, MESSAGE_BYTES, ServiceSpec, services_client::ServicesClient,
    },
    telemetry::Receipts,
};

/// A directory that goes away with the test.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("shifter-api-{}-{next}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server and its agent.
pub struct Testbed {
    pub agent: Arc<FakeAgent>,
    pub receipts: Arc<Receipts>,
    pub runtime: Runtime,
    pub directory: Directory,
    pub gate: Arc<Gate>,
    pub components: watch::Sender<Components>,
    stop: watch::Sender<bool>,
    server: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Testbed {
    pub fn new() -> Self {
        let directory = Directory::new();
        let runtime = Runtime::new().unwrap();
        let socket = Socket::bind(&directory.0.join("run/shifter.sock")).unwrap();
        let agent = Arc::new(FakeAgent::new());
        let receipts = Arc::new(Receipts::default());
        let (stop, stopped) = watch::channel(false);
        let components = watch::Sender::new(Components::from([("maintain", true)]));
        let served = Served {
            controller: agent.clone(),
            receipts: receipts.clone(),
            gate: Gate::open(),
            components: components.subscribe(),
        };
        let gate = served.gate.clone();
        let server = runtime.spawn(serve(socket, served, stopped));
        Self {
            agent,
            receipts,
            runtime,
            directory,
            gate,
            components,
            stop,
            server: Some(server),
        }
    }

    /// With one service "web", green at 5%.
    pub fn with_web() -> Self {
        let testbed = Self::new();
        let request = ApplyRequest {
            services: vec![web("web")],
            ..Default::default()
        };
        let mut services = testbed.services();
        testbed.runtime.block_on(services.apply(request)).unwrap();
        testbed
    }

    pub fn path(&self) -> PathBuf {
        self.directory.0.join("run/shifter.sock")
    }

    pub fn channel(&self) -> Channel {
        let _inside = self.runtime.enter();
        connect(&self.path())
    }

    pub fn services(&self) -> ServicesClient<Channel> {
        ServicesClient::new(self.channel())
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }

    /// Asks the server to end and gives how it did.
    pub fn stop(&mut self) -> Result<(), ServeError> {
        self.stop.send_replace(true);
        let server = self.server.take().unwrap();
        self.runtime.block_on(server).unwrap()
    }
}

fn connect(path: &Path) -> Channel {
    let path = path.to_owned();
    Endpoint::from_static("http://test.invalid").connect_with_connector_lazy(tower::service_fn(
        move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        },
    ))
}

/// A service with one backend in each pool.
pub fn web(name: &str) -> ServiceSpec {
    let backend = |address: &str| {
        vec![BackendSpec {
            address: address.to_owned(),
            ..Default::default()
        }]
    };
    ServiceSpec {
        name: name.to_owned(),
        vip: "203.0.113.10:443/tcp".to_owned(),
        green: "5%".to_owned(),
        blue: backend("10.0.0.11:8443"),
        green_pool: backend("10.0.1.11:8443"),
        ..Default::default()
    }
}
