//! `shifter explain`: which pool and backend a client gets, and why.

use std::net::{IpAddr, SocketAddr};

use crate::proto::ExplainRequest;

use super::{EXIT_DONE, client::Client, failure::Failure, screen::Screen, table};

/// Say which pool and backend a client gets, whether it is pinned, and why.
#[derive(clap::Args, Debug)]
pub(super) struct Explain {
    /// Name of the service.
    service: String,
    /// Address of the client, with or without port: 192.0.2.7, 192.0.2.7:40001, [2001:db8::7]:40001.
    #[arg(value_name = "CLIENT[:PORT]", value_parser = client_and_port)]
    client: (IpAddr, Option<u16>),
}

fn client_and_port(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Ok(client) = text.parse::<IpAddr>() {
        return Ok((client, None));
    }
    match text.parse::<SocketAddr>() {
        Ok(client) if client.port() != 0 => Ok((client.ip(), Some(client.port()))),
        _ => Err(format!(
            "{text:?} is no client: write 192.0.2.7, 192.0.2.7:40001 or [2001:db8::7]:40001"
        )),
    }
}

impl Explain {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let (address, port) = self.client;
        let request = ExplainRequest {
            name: self.service.clone(),
            client: address.to_string(),
            client_port: u32::from(port.unwrap_or(0)),
        };
        let answer = client.call(client.services().explain(request)).await?;
        if screen.json() {
            screen.json_value(&answer)?;
            return Ok(EXIT_DONE);
        }
        let who = match port {
            Some(port) => SocketAddr::new(address, port).to_string(),
            None => format!("{address} (any port)"),
        };
        let pinned = match answer.pinned {
            true => "pinned",
            false => "not pinned yet",
        };
        let pool = table::pool(answer.pool()).painted(screen);
        screen.line(&format!(
            "{who} -> {}: {pool}, {}, {pinned}",
            self.service, answer.backend
        ))?;
        for (index, why) in answer.why.iter().enumerate() {
            screen.line(&format!("  {}. {why}", index + 1))?;
        }
        Ok(EXIT_DONE)
    }
}
