//! The circuit breaker of a service, as its owner wants it. Pure.

use std::{fmt, time::Duration};

use super::{
    Weight, duration,
    file_table::{self, Table},
    tree::{Fault, Node},
};

/// Bounds on the candidate's failures; past all of them the kernel gives every
/// new flow to the live pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Breaker {
    /// Over which attempts and failures are counted; whole seconds.
    pub window: Duration,
    /// More failures than these.
    pub max_failures: u32,
    /// Of at least so many attempts.
    pub min_attempts: u32,
    /// And a larger share of them.
    pub max_ratio: Weight,
}

/// Bounds of `window`.
pub const WINDOW_S: std::ops::RangeInclusive<u64> = 1..=3_600;
/// Largest number of failures and attempts.
pub const MAX_COUNT: u32 = 1_000_000_000;

/// What of a breaker is out of range.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BreakerError {
    #[error("window {0} is out of range: write whole seconds from \"1s\" to \"1h\"")]
    Window(String),
    #[error("{what} = {count} is out of range: write {least} to 1000000000")]
    Count {
        what: &'static str,
        count: u32,
        least: u32,
    },
    #[error(
        "max_ratio {0} can never be passed: write less than 100%; without [service.breaker] there is none"
    )]
    Ratio(Weight),
    #[error("a breaker judges TCP handshakes and resets, and the VIP is UDP: take it out")]
    Udp,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(10),
            max_failures: 20,
            min_attempts: 50,
            max_ratio: default_ratio(),
        }
    }
}

/// A fifth, exactly as the text "20%" is read.
fn default_ratio() -> Weight {
    Weight::from_threshold(shifter_common::abi::service::THRESHOLD_ONE / 5)
}

impl Breaker {
    /// Checks the ranges.
    pub fn check(&self) -> Result<(), BreakerError> {
        let is_whole = self.window.subsec_nanos() == 0;
        if !is_whole || !WINDOW_S.contains(&self.window.as_secs()) {
            return Err(BreakerError::Window(duration::show(self.window)));
        }
        for (what, count, least) in [
            ("max_failures", self.max_failures, 0),
            ("min_attempts", self.min_attempts, 1),
        ] {
            if !(least..=MAX_COUNT).contains(&count) {
                return Err(BreakerError::Count { what, count, least });
            }
        }
        if self.max_ratio.threshold() > u64::from(u32::MAX) {
            return Err(BreakerError::Ratio(self.max_ratio));
        }
        Ok(())
    }

    /// For the store.
    pub fn to_json(self) -> serde_json::Value {
        serde_json::json!({
            "window": duration::show(self.window),
            "max_failures": self.max_failures,
            "min_attempts": self.min_attempts,
            "max_ratio": self.max_ratio.to_string(),
        })
    }

    /// From the table `[service.breaker]`; what is absent has its default.
    pub(super) fn read(node: &Node) -> Result<Self, Fault> {
        let keys = ["window", "max_failures", "min_attempts", "max_ratio"];
        let table = Table::of(node, "breaker", &keys)?;
        let mut breaker = Self::default();
        if let Some((text, at)) = table.string("window")? {
            breaker.window = duration::parse(text)
                .map_err(|error| file_table::place(at, format_args!("window: {error}")))?;
        }
        let most = i64::from(MAX_COUNT);
        if let Some(count) = table.integer("max_failures", 0, most)? {
            breaker.max_failures = count as u32;
        }
        if let Some(count) = table.integer("min_attempts", 1, most)? {
            breaker.min_attempts = count as u32;
        }
        if let Some(ratio) = table.parse("max_ratio")? {
            breaker.max_ratio = ratio;
        }
        Ok(breaker)
    }
}

impl fmt::Display for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "more than {} failures and {} of at least {} attempts within {}",
            self.max_failures,
            self.max_ratio,
            self.min_attempts,
            duration::show(self.window)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::file::{Format, parse_services, spec_from_json, spec_to_json};

    fn web(breaker: &str) -> String {
        format!(
            "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\npools = {{ blue = [\"10.0.0.1:80\"] }}\n[service.breaker]\n{breaker}"
        )
    }

    fn read(breaker: &str) -> Result<Option<Breaker>, String> {
        parse_services(&web(breaker), "f", Format::Toml)
            .map(|specs| specs[0].breaker)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_absent_has_its_default() {
        assert_eq!(read("").unwrap(), Some(Breaker::default()));
        let whole = "window = \"10s\"\nmax_failures = 20\nmin_attempts = 50\nmax_ratio = \"20%\"\n";
        assert_eq!(
            read(whole).unwrap().map(|b| b.to_string()),
            Some(Breaker::default().to_string())
        );
    }

    #[test]
    fn it_comes_back_from_the_store_as_it_was() {
        let text = web("window = \"30s\"\nmax_failures = 3\nmax_ratio = \"1/3\"\n");
        let spec = parse_services(&text, "f", Format::Toml).unwrap().remove(0);
        assert_eq!(spec_from_json(&spec_to_json(&spec)).unwrap(), spec);
        assert_eq!(spec.breaker.unwrap().max_failures, 3);
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_place() {
        for (text, part) in [
            (
                "windw = \"10s\"\n",
                "f:6:1: breaker has no key \"windw\": did you mean \"window\"?",
            ),
            ("window = \"10\"\n", "f:6:10: window: \"10\" is no duration"),
            ("window = \"2h\"\n", "from \"1s\" to \"1h\""),
            ("window = \"1500ms\"\n", "whole seconds"),
            (
                "max_failures = -1\n",
                "f:6:16: max_failures = -1 is out of range",
            ),
            ("min_attempts = 0\n", "write 1 to 1000000000"),
            ("max_ratio = \"100%\"\n", "can never be passed"),
            ("max_ratio = \"x\"\n", "f:6:13: max_ratio"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text:?}: {error}");
        }
        let udp = web("").replace("443/tcp", "443/udp");
        let error = parse_services(&udp, "f", Format::Toml).unwrap_err();
        assert!(error.to_string().contains("the VIP is UDP"), "{error}");
    }
}
