//! Texts of the model and back: VIPs, backends, affinities, seeds, words, numbers.

use std::{fmt, net::SocketAddr, str::FromStr};

use super::{Affinity, BackendState, Mode, PoolName, Protocol, Seed, SplitMethod, Vip};

/// A text that is not what it should be, and what would be right.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is no {what}: write {right}")]
pub struct TextError {
    pub text: String,
    pub what: &'static str,
    pub right: &'static str,
}

const VIP_RIGHT: &str =
    "address:port/protocol, as \"203.0.113.10:443/tcp\" or \"[2001:db8::1]:53/udp\"";
const ADDR_RIGHT: &str = "address:port, as \"10.0.0.11:8443\" or \"[2001:db8::11]:8443\"";

fn error(text: &str, what: &'static str, right: &'static str) -> TextError {
    // A seed is a secret: an error must not print what looks like one.
    let text = if what == "seed" { "…" } else { text };
    TextError {
        text: text.to_owned(),
        what,
        right,
    }
}

/// 1,048,576.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// "1 flow", "2 flows".
pub fn plural(number: u64, word: &str) -> String {
    match number {
        1 => format!("1 {word}"),
        _ => format!("{} {word}s", count(number)),
    }
}

/// Address and port of a backend.
pub fn parse_backend_addr(text: &str) -> Result<SocketAddr, TextError> {
    text.parse().map_err(|_| error(text, "backend", ADDR_RIGHT))
}

impl FromStr for Protocol {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(error(text, "protocol", "\"tcp\" or \"udp\"")),
        }
    }
}

impl FromStr for Vip {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let fault = || error(text, "VIP", VIP_RIGHT);
        let (addr, protocol) = text.rsplit_once('/').ok_or_else(fault)?;
        Ok(Self {
            addr: addr.parse().map_err(|_| fault())?,
            protocol: protocol.parse().map_err(|_| fault())?,
        })
    }
}

impl FromStr for PoolName {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        match text {
            "blue" => Ok(Self::Blue),
            "green" => Ok(Self::Green),
            _ => Err(error(text, "pool", "\"blue\" or \"green\"")),
        }
    }
}

impl FromStr for Mode {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        match text {
            "nat" => Ok(Self::Nat),
            _ => Err(error(text, "mode", "\"nat\"")),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nat => f.write_str("nat"),
        }
    }
}

impl FromStr for SplitMethod {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        match text {
            "hash" => Ok(Self::Hash),
            "exact" => Ok(Self::Exact),
            _ => Err(error(text, "split", "\"hash\" or \"exact\"")),
        }
    }
}

impl fmt::Display for SplitMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hash => "hash",
            Self::Exact => "exact",
        })
    }
}

impl FromStr for BackendState {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        match text {
            "ready" => Ok(Self::Ready),
            "drain" => Ok(Self::Drain),
            "maint" => Ok(Self::Maint),
            _ => Err(error(text, "state", "\"ready\", \"drain\" or \"maint\"")),
        }
    }
}

impl fmt::Display for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        })
    }
}

impl FromStr for Affinity {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let fault = || {
            error(
                text,
                "affinity",
                "\"flow\", \"client\" or a prefix of it, as \"client/24\" or \"client/64\"",
            )
        };
        match text {
            "flow" => Ok(Self::Flow),
            "client" => Ok(Self::Client(None)),
            _ => {
                let bits = text.strip_prefix("client/").ok_or_else(fault)?;
                if bits.is_empty() || bits.starts_with('+') || bits.starts_with('0') {
                    return Err(fault());
                }
                match bits.parse::<u8>() {
                    Ok(bits @ 1..=128) => Ok(Self::Client(Some(bits))),
                    _ => Err(fault()),
                }
            }
        }
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flow => f.write_str("flow"),
            Self::Client(None) => f.write_str("client"),
            Self::Client(Some(bits)) => write!(f, "client/{bits}"),
        }
    }
}

impl FromStr for Seed {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let fault = || error(text, "seed", "32 hex digits");
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(fault());
        }
        let word = |part: &str| u64::from_str_radix(part, 16).map_err(|_| fault());
        Ok(Self([word(&text[..16])?, word(&text[16..])?]))
    }
}

impl Seed {
    /// As 32 hex digits, for the store only: a seed is never shown.
    pub fn reveal(&self) -> String {
        format!("{:016x}{:016x}", self.0[0], self.0[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_things_read_well() {
        assert_eq!(count(1_048_576), "1,048,576");
        assert_eq!(count(999), "999");
        assert_eq!(plural(1, "service"), "1 service");
        assert_eq!(plural(1_000, "flow"), "1,000 flows");
    }

    #[test]
    fn texts_are_written_back_as_they_were_read() {
        for text in ["203.0.113.10:443/tcp", "[2001:db8::1]:53/udp", "[::]:1/tcp"] {
            assert_eq!(text.parse::<Vip>().unwrap().to_string(), text);
        }
        for text in ["flow", "client", "client/24", "client/128"] {
            assert_eq!(text.parse::<Affinity>().unwrap().to_string(), text);
        }
        for text in ["ready", "drain", "maint"] {
            assert_eq!(text.parse::<BackendState>().unwrap().to_string(), text);
        }
        for text in ["blue", "green"] {
            assert_eq!(text.parse::<PoolName>().unwrap().to_string(), text);
        }
        let hex = "000102030405060708090a0b0c0d0e0f";
        assert_eq!(hex.parse::<Seed>().unwrap().reveal(), hex);
    }

    #[test]
    fn wrong_texts_are_refused_with_what_would_be_right() {
        for text in [
            "",
            "203.0.113.10:443",
            "203.0.113.10/tcp",
            "203.0.113.10:443/sctp",
            "2001:db8::1:53/udp",
            "example.com:443/tcp",
            "203.0.113.10:70000/tcp",
        ] {
            let error = text.parse::<Vip>().unwrap_err().to_string();
            assert!(error.contains("203.0.113.10:443/tcp"), "{error}");
        }
        for text in [
            "",
            "client/",
            "client/0",
            "client/129",
            "client/024",
            "Flow",
            "client/+4",
        ] {
            assert!(text.parse::<Affinity>().is_err(), "{text:?} was taken");
        }
        let error = parse_backend_addr("10.0.0.11").unwrap_err().to_string();
        assert_eq!(
            error,
            "\"10.0.0.11\" is no backend: write address:port, as \"10.0.0.11:8443\" or \"[2001:db8::11]:8443\""
        );
    }

    #[test]
    fn a_wrong_seed_is_not_printed() {
        for text in ["00112233445566778899aabbccddeefg", "0011", ""] {
            let error = text.parse::<Seed>().unwrap_err().to_string();
            assert_eq!(error, "\"…\" is no seed: write 32 hex digits");
        }
    }
}
