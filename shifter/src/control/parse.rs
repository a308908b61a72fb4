//! Texts of the API as values of the model.

use std::net::SocketAddr;

use crate::model::{Affinity, Mode, Protocol, Seed, Vip};

pub(super) fn vip(text: &str) -> Result<Vip, String> {
    let wrong = || {
        format!(
            "{text:?} is no VIP: write ADDRESS:PORT/PROTOCOL, as in \"203.0.113.10:443/tcp\" or \"[2001:db8::1]:53/udp\""
        )
    };
    let (addr, protocol) = text.rsplit_once('/').ok_or_else(wrong)?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return Err(wrong()),
    };
    let addr: SocketAddr = addr.parse().map_err(|_| wrong())?;
    if addr.port() == 0 {
        return Err(wrong());
    }
    Ok(Vip { addr, protocol })
}

pub(super) fn backend_addr(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(addr) if addr.port() != 0 => Ok(addr),
        _ => Err(format!(
            "{text:?} is no backend: write ADDRESS:PORT, as in \"10.0.0.11:8443\" or \"[2001:db8::11]:8443\""
        )),
    }
}

pub(super) fn mode(text: &str) -> Result<Mode, String> {
    match text {
        "" | "nat" => Ok(Mode::Nat),
        _ => Err(format!("{text:?} is no mode: there is \"nat\"")),
    }
}

pub(super) fn affinity(text: &str) -> Result<Affinity, String> {
    let wrong = || {
        format!(
            "{text:?} is no affinity: write \"flow\", \"client\" or \"client/PREFIX\" as in \"client/24\""
        )
    };
    match text {
        "" | "flow" => Ok(Affinity::Flow),
        "client" => Ok(Affinity::Client(None)),
        _ => {
            let prefix = text.strip_prefix("client/").ok_or_else(wrong)?;
            let bits: u8 = prefix.parse().map_err(|_| wrong())?;
            match bits {
                1..=128 => Ok(Affinity::Client(Some(bits))),
                _ => Err(wrong()),
            }
        }
    }
}

pub(super) fn seed(text: &str) -> Result<Option<Seed>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let half = |range| {
        text.get(range)
            .filter(|_| text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits: &str| u64::from_str_radix(digits, 16).ok())
    };
    match (half(0..16), half(16..32)) {
        (Some(high), Some(low)) => Ok(Some(Seed([high, low]))),
        // The text is not repeated: a seed is never shown.
        _ => Err("the seed is not 32 hex digits: `openssl rand -hex 16` makes one".to_owned()),
    }
}

pub(super) fn affinity_text(affinity: Affinity) -> String {
    match affinity {
        Affinity::Flow => "flow".to_owned(),
        Affinity::Client(None) => "client".to_owned(),
        Affinity::Client(Some(bits)) => format!("client/{bits}"),
    }
}

pub(super) const fn mode_text(mode: Mode) -> &'static str {
    match mode {
        Mode::Nat => "nat",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_refused_with_what_would_be_right() {
        for text in [
            "",
            "10.0.0.1:80",
            "10.0.0.1/tcp",
            "10.0.0.1:0/tcp",
            "::1:80/tcp",
            "10.0.0.1:80/sctp",
        ] {
            assert!(
                vip(text).unwrap_err().contains("203.0.113.10:443/tcp"),
                "{text}"
            );
        }
        assert_eq!(
            vip("[2001:db8::1]:53/udp").unwrap().to_string(),
            "[2001:db8::1]:53/udp"
        );
        for text in ["clients", "client/", "client/0", "client/129", "flow/24"] {
            assert!(affinity(text).is_err(), "{text}");
        }
        for text in ["flow", "client", "client/24"] {
            assert_eq!(affinity_text(affinity(text).unwrap()), text);
        }
        assert!(seed("0123").is_err());
        assert!(!seed("secret").unwrap_err().contains("secret"));
        let whole = seed("000102030405060708090a0b0c0d0e0f").unwrap();
        assert_eq!(
            whole,
            Some(Seed([0x0001_0203_0405_0607, 0x0809_0a0b_0c0d_0e0f]))
        );
        assert!(backend_addr("10.0.0.1").is_err());
        assert!(mode("dsr").is_err());
    }
}
