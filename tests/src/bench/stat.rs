//! Medians and quartiles of few values.

use serde_json::{Value, json};

/// The middle of some values, and the quarters around it.
#[derive(Clone, Debug, Default)]
pub struct Spread {
    pub values: Vec<f64>,
}

impl Spread {
    /// The value that this share of all values lies below, by linear
    /// interpolation; 0 of none.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else {
            return 0.0;
        };
        let at = share * last as f64;
        let below = at.floor() as usize;
        let above = (below + 1).min(last);
        sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
    }

    /// The middle.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Median and quartiles as text with so many digits after the point.
    pub fn text(&self, digits: usize) -> String {
        format!(
            "{:.digits$} ({:.digits$}–{:.digits$})",
            self.median(),
            self.quantile(0.25),
            self.quantile(0.75)
        )
    }

    /// For the JSON report.
    pub fn json(&self) -> Value {
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        json!({
            "median": round(self.median()),
            "q1": round(self.quantile(0.25)),
            "q3": round(self.quantile(0.75)),
            "values": self.values.iter().map(|value| round(*value)).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_the_values() {
        let spread = Spread {
            values: vec![4.0, 1.0, 3.0, 2.0, 5.0],
        };
        assert_eq!(spread.text(1), "3.0 (2.0–4.0)");
        assert_eq!(Spread::default().median(), 0.0);
    }
}
