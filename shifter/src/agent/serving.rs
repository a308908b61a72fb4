//! What answers: the API and the metrics over one engine.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{sync::watch, task::JoinHandle};

use super::{
    doors::Doors,
    engine::Engine,
    panics,
    supervise::{API, METRICS, Supervisor},
};
use crate::{
    control::{self, Gate, Served},
    telemetry::{self, Receipts},
};

/// How long the tasks may take to end; the API's own grace is shorter.
const PATIENCE: Duration = Duration::from_secs(5);

/// The tasks that answer, until [`Serving::end`].
pub struct Serving {
    /// What writes pass through.
    pub gate: Arc<Gate>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Serving {
    /// Accepts from now on.
    pub fn start(
        engine: &Engine,
        doors: &Doors,
        receipts: &Arc<Receipts>,
        supervisor: &Arc<Supervisor>,
    ) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let gate = Gate::open();
        let mut tasks = Vec::new();
        let served = Served {
            controller: Arc::clone(&engine.reconciler) as _,
            receipts: Arc::clone(receipts),
            gate: Arc::clone(&gate),
            components: supervisor.components(),
        };
        let socket = doors.api.share()?;
        let until = stopped.clone();
        tasks.push(supervisor.run(API, stopped.clone(), move || {
            let (socket, served, until) = (socket.share(), served.clone(), until.clone());
            async move {
                panics::point(API);
                Ok(control::serve(socket?, served, until).await?)
            }
        }));
        if let Some(listener) = doors.metrics()? {
            let (receipts, until) = (Arc::clone(receipts), stopped.clone());
            let controller = Arc::clone(&engine.reconciler);
            tasks.push(supervisor.run(METRICS, stopped, move || {
                let listener = listener
                    .try_clone()
                    .and_then(tokio::net::TcpListener::from_std);
                let controller = Arc::clone(&controller) as _;
                let (receipts, until) = (Arc::clone(&receipts), until.clone());
                async move {
                    panics::point(METRICS);
                    let listener = listener.context("sharing the metrics' listener")?;
                    telemetry::serve(listener, controller, receipts, until).await;
                    Ok(())
                }
            }));
        }
        Ok(Self { gate, stop, tasks })
    }

    /// Accepts nothing more and sends writes that wait away; what is under way
    /// is answered until [`Serving::end`].
    pub fn leave(&self) {
        self.stop.send_replace(true);
        self.gate.close();
    }

    /// Leaves, and waits until everything under way is answered.
    pub async fn end(self) {
        self.leave();
        for task in self.tasks {
            match tokio::time::timeout(PATIENCE, task).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a task that serves ended badly"),
                Err(_) => tracing::warn!("requests under way were cut off"),
            }
        }
    }
}
