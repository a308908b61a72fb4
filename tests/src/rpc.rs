//! The agent's gRPC, for scenarios that change weights faster than a command
//! line can be started.

use std::{io, time::Duration};

use anyhow::Result;
use hyper_util::rt::TokioIo;
use shifter::proto::{
    Receipt, SetWeightRequest, services_client::ServicesClient, set_weight_request::ShareOf,
};
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::agent::Agent;

/// A connection to one agent; calls block.
#[derive(Debug)]
pub struct Rpc {
    runtime: Runtime,
    services: ServicesClient<Channel>,
}

impl Rpc {
    /// Connects to an agent's socket.
    pub fn connect(agent: &Agent<'_>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let path = agent.socket();
        let channel = runtime.block_on(
            Endpoint::from_static("http://shifter.invalid")
                .timeout(Duration::from_secs(10))
                .connect_with_connector(tower::service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
                })),
        )?;
        Ok(Self {
            runtime,
            services: ServicesClient::new(channel),
        })
    }

    /// `Services.SetWeight` with an absolute weight of green.
    pub fn set_weight(&mut self, service: &str, green: &str) -> Result<Receipt> {
        let request = SetWeightRequest {
            name: service.to_owned(),
            share_of: Some(ShareOf::Green(green.to_owned())),
            ..Default::default()
        };
        let call = self.services.set_weight(request);
        Ok(self.runtime.block_on(call)?.into_inner())
    }
}
