//! What the agent may not do, said at its start.
//!
//! CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON carry everything that packets need
//! (docs/service.md). What they do not carry is little, and never in silence.

use std::fs;

const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;
/// Tables of the old iptables, one a line; read by root only.
const OLD_TABLES: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];

/// Warns of everything that a missing privilege takes away on this host.
pub fn say_what_is_missing() {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let has_old_tables = OLD_TABLES
        .iter()
        .any(|path| fs::read_to_string(path).is_ok_and(|names| !names.trim().is_empty()));
    for lack in lacks(effective(&status), has_old_tables) {
        tracing::warn!("{lack}");
    }
}

/// Reads CapEff of /proc/PID/status; what cannot be read is taken for all.
fn effective(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(u64::MAX)
}

fn lacks(effective: u64, has_old_tables: bool) -> Vec<&'static str> {
    let has = |capability: u32| effective >> capability & 1 == 1;
    let mut lacks = Vec::new();
    if !has(CAP_SYS_ADMIN) {
        lacks.push(
            "without CAP_SYS_ADMIN: sockets in containers are not looked at, so a flow to one that ended without a packet counts until its time is over; and programs that others attach from now on are not named until `shifter prepare` runs (docs/service.md has the drop-in that gives it)",
        );
    }
    if has_old_tables && !has(CAP_NET_RAW) {
        lacks.push(
            "without CAP_NET_RAW: this host has rules of the old iptables, which cannot be read, so a DNAT in front of a VIP is taken for granted: use iptables-nft, or give CAP_NET_RAW by a drop-in (docs/service.md)",
        );
    }
    lacks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF.
    const UNIT: u64 = 1 << 12 | 1 << 38 | 1 << 39;

    #[test]
    fn what_a_missing_privilege_takes_away_is_named_and_nothing_else() {
        assert!(lacks(u64::MAX, true).is_empty());
        assert_eq!(lacks(UNIT, false).len(), 1);
        assert!(lacks(UNIT, false)[0].contains("CAP_SYS_ADMIN"));
        let both = lacks(UNIT, true);
        assert!(both[1].contains("CAP_NET_RAW"), "{both:?}");
        assert!(lacks(UNIT | 1 << 13 | 1 << 21, true).is_empty());
    }

    #[test]
    fn effective_capabilities_are_read_from_the_status() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000000c000001000\n"), UNIT);
        assert_eq!(effective(""), u64::MAX);
    }
}
