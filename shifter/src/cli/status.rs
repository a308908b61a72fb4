//! `shifter status`: the agent, its hooks, limits, table, and what is loud.

use crate::model::duration;
use serde::Serialize;

use crate::proto::{GetInfoRequest, Info, Interface, Service};

use super::{
    EXIT_DONE,
    client::Client,
    failure::Failure,
    screen::{Screen, Style},
    table::{Cell, Table, styled},
    text,
};

/// Show the agent, its hooks, limits and table, and what is loud.
#[derive(clap::Args, Debug)]
pub(super) struct Status {
    /// List the packets of every verdict as well.
    #[arg(long)]
    verdicts: bool,
}

#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    info: Info,
    /// What is loud, the warnings of services included.
    loud: Vec<String>,
}

impl Status {
    pub async fn run(self, client: &Client, screen: &mut Screen<'_>) -> Result<u8, Failure> {
        let info = client
            .call(client.admin().get_info(GetInfoRequest {}))
            .await?;
        let services = client.read(None).await?;
        let loud = loud(&info, &services);
        if screen.json() {
            screen.json_value(&Answer { info, loud })?;
            return Ok(EXIT_DONE);
        }
        print_agent(&info, services.len(), screen)?;
        print_interfaces(&info, screen)?;
        print_limits(&info, screen)?;
        if self.verdicts {
            print_verdicts(&info, screen)?;
        }
        screen.line("")?;
        if loud.is_empty() {
            screen.line("nothing is loud")?;
        }
        for text in loud {
            screen.line(&format!("{} {text}", screen.paint(Style::Loud, "loud:")))?;
        }
        Ok(EXIT_DONE)
    }
}

fn loud(info: &Info, services: &[Service]) -> Vec<String> {
    let mut loud = info.warnings.clone();
    for verdict in info.verdicts.iter().filter(|v| v.recent_packets > 0) {
        loud.push(format!(
            "{} dropped at {} in the last minute: {} ({} so far)",
            text::plural(verdict.recent_packets, "packet"),
            verdict.hook,
            verdict.reason,
            text::count(verdict.packets)
        ));
    }
    for service in services {
        let name = text::name(service);
        loud.extend(
            service
                .warnings
                .iter()
                .map(|text| format!("{name}: {text}")),
        );
        for backend in &service.backends {
            loud.extend(
                backend
                    .warnings
                    .iter()
                    .map(|text| format!("{name}: {text}")),
            );
        }
    }
    loud
}

fn print_agent(info: &Info, services: usize, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let table = info.table.unwrap_or_default();
    let mut rows = vec![
        (
            "agent",
            format!(
                "{}, pid {}, up {}, {}",
                info.version,
                info.pid,
                duration::about(info.uptime_seconds),
                text::plural(services as u64, "service")
            ),
        ),
        (
            "programs",
            format!(
                "tag {}, layout {}, kernel {}",
                info.tag, info.abi_version, info.kernel
            ),
        ),
        ("state", info.state_dir.clone()),
        (
            "flow table",
            format!(
                "{} of {} flows ({} proven, {} unproven, {} closing), {} gave way, {}",
                text::count(table.live),
                text::count(table.capacity),
                text::count(table.proven),
                text::count(table.unproven),
                text::count(table.closing),
                text::count(table.evicted),
                text::bytes(table.memory_bytes)
            ),
        ),
    ];
    rows.extend(dropped(info).map(|text| ("dropped", text)));
    for (what, text) in rows {
        let what = screen.paint(Style::Bold, &format!("{what:<10}"));
        screen.line(&format!("{what}  {text}"))?;
    }
    Ok(())
}

/// What was dropped so far, if anything was; it is loud only while it goes on.
fn dropped(info: &Info) -> Option<String> {
    let drops = info.verdicts.iter().filter(|v| v.drop && v.packets > 0);
    let parts: Vec<String> = drops
        .clone()
        .map(|v| format!("{} {} at {}", text::count(v.packets), v.reason, v.hook))
        .collect();
    let packets = drops.map(|v| v.packets).sum();
    let all = text::plural(packets, "packet");
    (packets > 0).then(|| format!("{all} so far ({})", parts.join(", ")))
}

/// What the kernel says runs there, each by its id and tag.
fn in_force(interface: &Interface) -> Cell {
    let shown: Vec<String> = interface
        .programs
        .iter()
        .map(|program| match program.state.as_str() {
            "ours" => format!("{} {} {}", program.direction, program.id, program.tag),
            "other" => format!("{} {} NOT OURS", program.direction, program.id),
            _ => format!("{} NONE", program.direction),
        })
        .collect();
    let all = interface.programs.iter().all(|p| p.state == "ours");
    let style = match all && !shown.is_empty() {
        true => Style::Plain,
        false => Style::Loud,
    };
    match shown.is_empty() {
        true => styled(style, "not known"),
        false => styled(style, shown.join(", ")),
    }
}

fn print_interfaces(info: &Info, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let mut table = Table::new(&[
        "INTERFACE",
        "HOOK",
        "EGRESS",
        "LINK",
        "TAG",
        "IN FORCE",
        "WHY",
    ]);
    for interface in &info.interfaces {
        let link = match interface.up {
            true => styled(Style::Plain, "up"),
            false => styled(Style::Loud, "down"),
        };
        table.row([
            interface.name.clone().into(),
            interface.hook.clone().into(),
            interface.egress.clone().into(),
            link,
            interface.tag.clone().into(),
            in_force(interface),
            interface.why.clone().into(),
        ]);
    }
    screen.line("")?;
    Ok(table.print(screen)?)
}

fn print_limits(info: &Info, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let mut table = Table::new(&["LIMIT", ">USED", ">OF", ">MEMORY"]);
    for limit in &info.limits {
        let near = limit.used.saturating_mul(10) >= limit.limit.saturating_mul(9);
        let style = if near { Style::Loud } else { Style::Plain };
        table.row([
            limit.name.clone().into(),
            styled(style, text::count(limit.used)),
            text::count(limit.limit).into(),
            text::bytes(limit.memory_bytes).into(),
        ]);
    }
    screen.line("")?;
    Ok(table.print(screen)?)
}

fn print_verdicts(info: &Info, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let mut table = Table::new(&["HOOK", "REASON", ">PACKETS"]);
    for verdict in info.verdicts.iter().filter(|verdict| verdict.packets > 0) {
        let style = if verdict.recent_packets > 0 {
            Style::Loud
        } else {
            Style::Plain
        };
        table.row([
            verdict.hook.clone().into(),
            styled(style, verdict.reason.clone()),
            text::count(verdict.packets).into(),
        ]);
    }
    screen.line("")?;
    Ok(table.print(screen)?)
}
