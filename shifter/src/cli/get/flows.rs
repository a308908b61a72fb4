//! `shifter get flows`: the flow table, row by row.

use crate::model::duration;
use std::net::{IpAddr, SocketAddr};

use crate::proto::{Flow, ListFlowsRequest, ListFlowsResponse, Pool};

use super::{Client, Failure, PAUSE, Page, Screen, print};
use crate::cli::{
    table::{self, Table},
    text,
};

/// Show live flows and where they are pinned.
///
/// Flows that have ended, in the states closing and reset, are kept for a minute
/// and hidden; the last line counts them. JSON has all, with their state.
#[derive(clap::Args, Debug)]
pub(super) struct Flows {
    /// Name of a service; all where none is given.
    service: Option<String>,
    /// Only flows of this pool.
    #[arg(long, value_enum)]
    pool: Option<PoolWord>,
    /// Only flows on this backend, as in 10.0.0.11:8443.
    #[arg(long, value_name = "ADDR:PORT")]
    backend: Option<SocketAddr>,
    /// Only flows of this client, as in 192.0.2.7.
    #[arg(long, value_name = "ADDR")]
    client: Option<IpAddr>,
    /// Show those too that have ended.
    #[arg(long)]
    all: bool,
    /// List at most so many.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Go on and read again every second.
    #[arg(short, long)]
    watch: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum PoolWord {
    Blue,
    Green,
}

impl Flows {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
        let request = ListFlowsRequest {
            service: self.service.unwrap_or_default(),
            pool: match self.pool {
                None => Pool::Unspecified,
                Some(PoolWord::Blue) => Pool::Blue,
                Some(PoolWord::Green) => Pool::Green,
            }
            .into(),
            backend: self
                .backend
                .map_or_else(String::new, |addr| addr.to_string()),
            client: self
                .client
                .map_or_else(String::new, |addr| addr.to_string()),
            limit: self.limit,
            open_only: !self.all && !screen.json(),
        };
        let mut page = Page::default();
        loop {
            let answer = client
                .call(client.observe().list_flows(request.clone()))
                .await?;
            let hidden = hidden(client, &request, &answer).await?;
            match (screen.json(), self.watch) {
                (true, true) => screen.json_line(&answer)?,
                (true, false) => screen.json_value(&answer)?,
                (false, true) => page.show(lines(&answer, hidden, screen), screen)?,
                (false, false) => print(&lines(&answer, hidden, screen), screen)?,
            }
            if !self.watch {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Flows that are not shown because they have ended.
async fn hidden(
    client: &Client,
    request: &ListFlowsRequest,
    answer: &ListFlowsResponse,
) -> Result<u64, Failure> {
    if !request.open_only {
        return Ok(0);
    }
    let all = ListFlowsRequest {
        open_only: false,
        limit: 1,
        ..request.clone()
    };
    let all = client.call(client.observe().list_flows(all)).await?;
    Ok(all.matched.saturating_sub(answer.matched))
}

fn lines(answer: &ListFlowsResponse, hidden: u64, screen: &Screen<'_>) -> Vec<String> {
    let hidden = (hidden > 0).then(|| {
        let flows = text::plural(hidden, "closing flow");
        format!("{flows} hidden: --all shows them")
    });
    if answer.flows.is_empty() {
        let none = if hidden.is_some() {
            "no open flows"
        } else {
            "no flows"
        };
        return [none.to_owned()].into_iter().chain(hidden).collect();
    }
    let mut table = Table::new(&[
        "SERVICE", "CLIENT", "PROTO", "POOL", "BACKEND", "STATE", "PINNED", ">GEN", ">AGE",
        ">IDLE", ">BYTES",
    ]);
    for flow in &answer.flows {
        let pinned = pinned(flow);
        table.row([
            flow.service.clone().into(),
            flow.client.clone().into(),
            flow.protocol().word().into(),
            table::pool(flow.pool()),
            flow.backend.clone().into(),
            flow.state.clone().into(),
            pinned.into(),
            flow.generation.to_string().into(),
            duration::about(flow.age_seconds).into(),
            duration::about(flow.idle_seconds).into(),
            text::bytes(flow.bytes).into(),
        ]);
    }
    let mut lines = table.lines(screen);
    let listed = answer.flows.len() as u64;
    if listed < answer.matched {
        lines.push(format!(
            "{} of {} flows: --limit lists more",
            text::count(listed),
            text::count(answer.matched)
        ));
    }
    lines.extend(hidden);
    lines
}

/// By what right a flow holds its place. One that closes has no need to be
/// proven any more, and gives way whether it ever was or not.
fn pinned(flow: &Flow) -> &'static str {
    let is_closing = flow.state == "closing" || flow.state == "reset";
    if flow.cohort {
        return match flow.proven {
            true => "cohort, proven",
            false => "cohort",
        };
    }
    match (flow.adopted, flow.proven) {
        (true, true) => "adopted, proven",
        (true, false) => "adopted",
        (false, true) => "proven",
        (false, false) if is_closing => "closing",
        (false, false) => "unproven",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closing_flow_is_not_called_unproven() {
        let flow = |state: &str, proven| Flow {
            state: state.to_owned(),
            proven,
            ..Flow::default()
        };
        assert_eq!(pinned(&flow("closing", false)), "closing");
        assert_eq!(pinned(&flow("reset", false)), "closing");
        assert_eq!(pinned(&flow("half_open", false)), "unproven");
        assert_eq!(pinned(&flow("established", true)), "proven");
    }
}
