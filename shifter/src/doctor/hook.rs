//! Which hook an interface gets, and why. Pure.

use std::{fmt, str::FromStr};

use serde::Serialize;

use crate::network::Link;

/// Where the packet path is attached at ingress.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    #[default]
    Auto,
    Xdp,
    Tc,
}

/// A word that names no hook.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no hook: give auto, xdp or tc")]
pub struct HookError(String);

impl FromStr for Hook {
    type Err = HookError;

    fn from_str(text: &str) -> Result<Self, HookError> {
        match text {
            "auto" => Ok(Self::Auto),
            "xdp" => Ok(Self::Xdp),
            "tc" => Ok(Self::Tc),
            _ => Err(HookError(text.to_owned())),
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Xdp => "xdp",
            Self::Tc => "tc",
        })
    }
}

/// Chooses `Xdp` or `Tc`, and says why. `link.xdp` must be `None` where the
/// program in the slot is one of ours. Xdp still has to prove at attach that
/// the driver has it natively.
pub fn choose_hook(link: &Link, asked: Hook) -> (Hook, String) {
    if asked != Hook::Auto {
        return (asked, format!("the configuration says hook = \"{asked}\""));
    }
    if let Some(slot) = link.xdp {
        let id = slot.program_id;
        return (Hook::Tc, format!("the XDP slot is taken by program {id}"));
    }
    if link.loopback {
        return (Hook::Tc, "loopback has no native XDP".into());
    }
    let why = match link.kind.as_deref() {
        Some("veth") => {
            "veth: native XDP is no faster there than tc and costs segmentation offload"
        }
        Some("bond" | "team") => "its ports share it: tc sees their traffic as one",
        Some(kind @ ("tun" | "tap")) => {
            return (
                Hook::Tc,
                format!("{kind}: packets come from a program of this host"),
            );
        }
        Some(kind) => return (Hook::Tc, format!("{kind} has no native XDP worth its cost")),
        None if link.mac.is_none() => "it has no Ethernet header",
        None => {
            return (
                Hook::Xdp,
                "a network card: native XDP where its driver has it".into(),
            );
        }
    };
    (Hook::Tc, why.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{XdpMode, XdpSlot};

    fn card() -> Link {
        Link {
            name: "eth0".into(),
            index: 2,
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            up: true,
            running: true,
            ..Link::default()
        }
    }

    #[test]
    fn auto_takes_xdp_on_a_network_card() {
        assert_eq!(choose_hook(&card(), Hook::Auto).0, Hook::Xdp);
    }

    #[test]
    fn auto_takes_tc_on_every_software_interface() {
        for kind in [
            "veth", "bridge", "bond", "tun", "macvlan", "dummy", "vlan", "team",
        ] {
            let link = Link {
                kind: Some(kind.into()),
                ..card()
            };
            assert_eq!(choose_hook(&link, Hook::Auto).0, Hook::Tc, "{kind}");
        }
        let loopback = Link {
            loopback: true,
            ..card()
        };
        assert_eq!(choose_hook(&loopback, Hook::Auto).0, Hook::Tc);
        let no_mac = Link {
            mac: None,
            ..card()
        };
        assert_eq!(choose_hook(&no_mac, Hook::Auto).0, Hook::Tc);
    }

    #[test]
    fn auto_takes_tc_where_the_slot_is_taken_and_names_the_program() {
        let link = Link {
            xdp: Some(XdpSlot {
                mode: XdpMode::Native,
                program_id: 42,
            }),
            ..card()
        };
        let (hook, why) = choose_hook(&link, Hook::Auto);
        assert_eq!(hook, Hook::Tc);
        assert!(why.contains("program 42"), "{why}");
    }

    #[test]
    fn what_is_asked_for_is_taken() {
        let veth = Link {
            kind: Some("veth".into()),
            ..card()
        };
        assert_eq!(choose_hook(&veth, Hook::Xdp).0, Hook::Xdp);
        assert_eq!(choose_hook(&card(), Hook::Tc).0, Hook::Tc);
    }

    #[test]
    fn words_are_read_and_others_refused() {
        for hook in [Hook::Auto, Hook::Xdp, Hook::Tc] {
            assert_eq!(hook.to_string().parse(), Ok(hook));
        }
        let refused = "XDP".parse::<Hook>().unwrap_err().to_string();
        assert!(refused.contains("auto, xdp or tc"), "{refused}");
    }
}
