//! Prometheus' text exposition format, version 0.0.4.

use std::fmt::{Display, Write as _};

use super::receipts::Times;

/// Content type of the format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family of samples is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

/// A page of metrics, family by family.
#[derive(Default)]
pub(super) struct Page {
    text: String,
}

/// Samples of one family.
pub(super) struct Family<'a> {
    page: &'a mut Page,
    name: &'static str,
}

type Labels<'a> = [(&'static str, &'a str)];

impl Page {
    /// Begins a family; its samples follow before the next begins.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.head(name, kind, help);
        Family { page: self, name }
    }

    /// A histogram without labels, in seconds.
    pub fn histogram(&mut self, name: &'static str, help: &str, times: &Times) {
        self.head(name, "histogram", help);
        for (bound, count) in &times.buckets {
            self.line(format_args!("{name}_bucket{{le=\"{bound}\"}} {count}"));
        }
        let count = times.count;
        self.line(format_args!("{name}_bucket{{le=\"+Inf\"}} {count}"));
        self.line(format_args!("{name}_sum {}", times.sum_s));
        self.line(format_args!("{name}_count {count}"));
    }

    /// Begins a family of histograms; each follows by [`Page::histogram_of`].
    pub fn histograms(&mut self, name: &'static str, help: &str) {
        self.head(name, "histogram", help);
    }

    /// One histogram of a family: counts at or below each bound in seconds.
    pub fn histogram_of(
        &mut self,
        name: &str,
        labels: &Labels<'_>,
        below: &[(f64, u64)],
        count: u64,
        sum_s: f64,
    ) {
        let words: Vec<String> = labels
            .iter()
            .map(|(label, word)| format!("{label}=\"{}\"", escape(word)))
            .collect();
        let words = words.join(",");
        for (bound, count) in below {
            self.line(format_args!(
                "{name}_bucket{{{words},le=\"{bound}\"}} {count}"
            ));
        }
        self.line(format_args!("{name}_bucket{{{words},le=\"+Inf\"}} {count}"));
        self.line(format_args!("{name}_sum{{{words}}} {sum_s}"));
        self.line(format_args!("{name}_count{{{words}}} {count}"));
    }

    /// The whole page.
    pub fn finish(self) -> String {
        self.text
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{line}");
    }
}

impl Family<'_> {
    /// Adds a sample. Integers are written whole, as counters need it.
    pub fn sample(&mut self, labels: &Labels<'_>, value: impl Display) -> &mut Self {
        let text = &mut self.page.text;
        text.push_str(self.name);
        for (index, (label, word)) in labels.iter().enumerate() {
            text.push(if index == 0 { '{' } else { ',' });
            let _ = write!(text, "{label}=\"{}\"", escape(word));
        }
        if !labels.is_empty() {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
        self
    }
}

fn escape(word: &str) -> String {
    word.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_written_as_the_format_wants_them() {
        let mut page = Page::default();
        page.family("shifter_things_total", Kind::Counter, "Things.")
            .sample(&[], 18_446_744_073_709_551_615_u64)
            .sample(&[("name", "a\"b\\c\nd"), ("pool", "blue")], 0.05);
        assert_eq!(
            page.finish(),
            "# HELP shifter_things_total Things.\n# TYPE shifter_things_total counter\n\
             shifter_things_total 18446744073709551615\n\
             shifter_things_total{name=\"a\\\"b\\\\c\\nd\",pool=\"blue\"} 0.05\n"
        );
    }
}
