//! The agent's gRPC, for scenarios that change weights faster than a command
//! line can be started.

use std::{io, path::PathBuf, time::Duration};

use anyhow::Result;
use hyper_util::rt::TokioIo;
use shifter::proto::{
    ApplyRequest, GetInfoRequest, GetServiceRequest, Info, Receipt, Service, ServiceSpec,
    SetWeightRequest, admin_client::AdminClient, services_client::ServicesClient,
    set_weight_request::ShareOf,
};
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};

use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::agent::Agent;

/// A connection to one agent; calls block.
#[derive(Debug)]
pub struct Rpc {
    runtime: Runtime,
    services: ServicesClient<Channel>,
    admin: AdminClient<Channel>,
    health: HealthClient<Channel>,
}

impl Rpc {
    /// Connects to an agent's socket.
    pub fn connect(agent: &Agent<'_>) -> Result<Self> {
        Self::connect_with(agent, Duration::from_secs(10))
    }

    /// As [`Rpc::connect`], with another limit for each call.
    pub fn connect_with(agent: &Agent<'_>, limit: Duration) -> Result<Self> {
        Self::at(agent.socket(), limit)
    }

    /// As [`Rpc::connect_with`], by the path of the socket.
    pub fn at(path: PathBuf, limit: Duration) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let channel = runtime.block_on(
            Endpoint::from_static("http://shifter.invalid")
                .timeout(limit)
                .connect_with_connector(tower::service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
                })),
        )?;
        Ok(Self {
            runtime,
            services: ServicesClient::new(channel.clone()),
            admin: AdminClient::new(channel.clone()),
            health: HealthClient::new(channel),
        })
    }

    /// `Services.Get`.
    pub fn get(&mut self, service: &str) -> Result<Service, Status> {
        let name = service.to_owned();
        let call = self.services.get(GetServiceRequest { name });
        Ok(self.runtime.block_on(call)?.into_inner())
    }

    /// `grpc.health.v1.Health.Check` of one component: whether it serves.
    pub fn is_serving(&mut self, component: &str) -> Result<bool, Status> {
        let service = component.to_owned();
        let call = self.health.check(HealthCheckRequest { service });
        let answer = self.runtime.block_on(call)?.into_inner();
        Ok(answer.status() == ServingStatus::Serving)
    }

    /// `Services.SetWeight` with an absolute weight of green.
    pub fn set_weight(&mut self, service: &str, green: &str) -> Result<Receipt, Status> {
        let request = SetWeightRequest {
            name: service.to_owned(),
            share_of: Some(ShareOf::Green(green.to_owned())),
            ..Default::default()
        };
        let call = self.services.set_weight(request);
        Ok(self.runtime.block_on(call)?.into_inner())
    }

    /// `Services.Apply`.
    pub fn apply(&mut self, services: Vec<ServiceSpec>) -> Result<Vec<Receipt>, Status> {
        let request = ApplyRequest {
            services,
            ..Default::default()
        };
        let call = self.services.apply(request);
        Ok(self.runtime.block_on(call)?.into_inner().receipts)
    }

    /// `Admin.GetInfo`.
    pub fn info(&mut self) -> Result<Info> {
        let call = self.admin.get_info(GetInfoRequest {});
        Ok(self.runtime.block_on(call)?.into_inner())
    }
}
