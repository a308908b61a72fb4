//! The connection to the agent.

use std::{
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint, Uri},
};

use super::{Global, failure::Failure};
use crate::proto::{
    GetServiceRequest, ListServicesRequest, MESSAGE_BYTES, Service, admin_client::AdminClient,
    error::Reason, observe_client::ObserveClient, rollouts_client::RolloutsClient,
    services_client::ServicesClient,
};

/// Before a write is sent to the next agent.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks the agent at one endpoint; every answer is waited for only so long.
pub(super) struct Client {
    channel: Channel,
    endpoint: String,
    path: PathBuf,
    timeout: Duration,
}

impl Client {
    /// Connects at the first call. Needs a tokio runtime.
    pub fn new(global: &Global) -> Result<Self, Failure> {
        let endpoint = global.endpoint.clone();
        let path = socket_path(&endpoint)?;
        let place = path.clone();
        // The URI is of no use on a unix socket, but HTTP/2 wants one.
        let channel = Endpoint::from_static("http://shifter.invalid").connect_with_connector_lazy(
            tower::service_fn(move |_: Uri| {
                let place = place.clone();
                async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(place).await?)) }
            }),
        );
        Ok(Self {
            channel,
            endpoint,
            path,
            timeout: global.timeout,
        })
    }

    pub fn services(&self) -> ServicesClient<Channel> {
        ServicesClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }

    pub fn observe(&self) -> ObserveClient<Channel> {
        ObserveClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    pub fn rollouts(&self) -> RolloutsClient<Channel> {
        RolloutsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    /// How long an agent that is away is waited for.
    pub fn patience(&self) -> Duration {
        self.timeout
    }

    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone())
    }

    /// Waits for an answer within the timeout.
    pub async fn call<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        self.call_for(Duration::ZERO, call).await
    }

    /// Waits for an answer that takes up to `more` beyond the timeout.
    pub async fn call_for<T>(
        &self,
        more: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let limit = self.timeout.saturating_add(more);
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failure(status)),
            Err(_) => Err(Failure::Timeout(limit)),
        }
    }

    /// As [`Client::call_for`], for a write. One that an agent sends away because
    /// another takes over has changed nothing, and goes to the other.
    pub async fn write<T, F>(&self, more: Duration, call: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let begun = Instant::now();
        loop {
            let nothing_done = match self.call_for(more, call()).await {
                Err(failure) if failure.has_done_nothing() => failure,
                other => return other,
            };
            if begun.elapsed() >= self.timeout {
                return Err(nothing_done);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What a status means, with a look at the socket where the connection failed.
    pub fn failure(&self, status: Status) -> Failure {
        let failure = Failure::from_status(status, &self.endpoint);
        let Failure::Unreachable { endpoint, cause } = failure else {
            return failure;
        };
        match std::os::unix::net::UnixStream::connect(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Failure::Closed { endpoint }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Failure::Unreachable {
                endpoint,
                cause: "there is no socket".to_owned(),
            },
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Failure::Unreachable {
                    endpoint,
                    cause: "nobody listens on the socket".to_owned(),
                }
            }
            Ok(_) | Err(_) => Failure::Unreachable { endpoint, cause },
        }
    }

    /// The agent ended a stream.
    pub fn ended(&self) -> Failure {
        Failure::Unreachable {
            endpoint: self.endpoint.clone(),
            cause: "the agent has ended".to_owned(),
        }
    }

    /// One service, or all where no name is given.
    pub async fn read(&self, name: Option<&str>) -> Result<Vec<Service>, Failure> {
        let mut services = self.services();
        match name {
            Some(name) => {
                let name = name.to_owned();
                let service = self.call(services.get(GetServiceRequest { name })).await?;
                Ok(vec![service])
            }
            None => Ok(self
                .call(services.list(ListServicesRequest {}))
                .await?
                .services),
        }
    }
}

/// Whether the agent is being replaced, or ends.
pub(super) fn is_leaving(status: &Status) -> bool {
    Reason::of(status) == Some(Reason::AgentLeaving)
}

fn socket_path(endpoint: &str) -> Result<PathBuf, Failure> {
    let path = endpoint
        .strip_prefix("unix://")
        .or_else(|| endpoint.strip_prefix("unix:"))
        .unwrap_or(endpoint);
    if !path.starts_with('/') {
        return Err(Failure::Usage(format!(
            "{endpoint:?} is no endpoint: write unix:// and an absolute path, as in unix:///run/shifter/shifter.sock"
        )));
    }
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_absolute_paths_of_unix_sockets() {
        for text in ["unix:///run/s.sock", "unix:/run/s.sock", "/run/s.sock"] {
            assert_eq!(socket_path(text).unwrap(), PathBuf::from("/run/s.sock"));
        }
        for text in ["", "s.sock", "http://127.0.0.1:7443", "unix://s.sock"] {
            assert_eq!(socket_path(text).unwrap_err().exit_code(), 64, "{text}");
        }
    }
}
