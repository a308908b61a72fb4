//! Plots as inline SVG: lines over time, without script or anything from elsewhere.

use std::fmt::Write as _;

/// Size of a plot in its own units, and its margins.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 26.0;

/// One line of a plot; `None` leaves a gap.
pub struct Line<'a> {
    pub name: &'a str,
    /// Class of CSS: "blue", "green", "plain", "dim".
    pub class: &'a str,
    pub values: Vec<Option<f64>>,
    /// Drawn as steps: a value holds until the next.
    pub steps: bool,
}

/// Something that happened.
pub struct Mark {
    pub at_s: f64,
    pub class: &'static str,
    pub text: String,
}

/// A plot over time.
pub struct Plot<'a> {
    pub title: &'a str,
    /// Seconds of each value.
    pub at_s: &'a [f64],
    pub until_s: f64,
    pub lines: Vec<Line<'a>>,
    pub marks: &'a [Mark],
    /// Highest value shown at least.
    pub at_least: f64,
    pub show: fn(f64) -> String,
}

/// Text that stands for itself in HTML.
pub fn escape(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => "&quot;".to_owned(),
            '\'' => "&#39;".to_owned(),
            c => c.to_string(),
        })
        .collect()
}

/// A round number not below `value`.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0];
    let fits = |step: &f64| step * power >= value * 0.999_999;
    steps.into_iter().find(fits).unwrap_or(10.0) * power
}

impl Plot<'_> {
    fn x(&self, at_s: f64) -> f64 {
        let share = (at_s / self.until_s.max(0.001)).clamp(0.0, 1.0);
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64, most: f64) -> f64 {
        let share = (value / most).clamp(0.0, 1.0);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    /// The plot with its title and legend.
    pub fn svg(&self) -> String {
        let values = self
            .lines
            .iter()
            .flat_map(|line| line.values.iter().flatten());
        let most = round_up(values.copied().fold(self.at_least, f64::max));
        let mut svg = format!("<figure><figcaption>{}", escape(self.title));
        for line in &self.lines {
            // Writing into a String cannot fail.
            let _ = write!(
                svg,
                " <span class=\"key {}\">{}</span>",
                line.class,
                escape(line.name)
            );
        }
        let _ = write!(
            svg,
            "</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(self.title)
        );
        self.axes(&mut svg, most);
        for mark in self.marks {
            let x = self.x(mark.at_s);
            let _ = write!(
                svg,
                "<line class=\"mark {}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"><title>{}</title></line>",
                mark.class,
                HEIGHT - BOTTOM,
                escape(&mark.text)
            );
        }
        for line in &self.lines {
            self.line(&mut svg, line, most);
        }
        svg.push_str("</svg></figure>");
        svg
    }

    fn axes(&self, svg: &mut String, most: f64) {
        for quarter in 0..=4 {
            let value = most * f64::from(quarter) / 4.0;
            let y = self.y(value, most);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 3.5,
                escape(&(self.show)(value))
            );
        }
        for quarter in 0..=4 {
            let at_s = self.until_s * f64::from(quarter) / 4.0;
            let anchor = match quarter {
                0 => "start",
                4 => "end",
                _ => "middle",
            };
            let _ = write!(
                svg,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                self.x(at_s),
                HEIGHT - 8.0,
                escape(&crate::model::duration::about(at_s))
            );
        }
    }

    fn line(&self, svg: &mut String, line: &Line<'_>, most: f64) {
        let mut path = String::new();
        let mut is_open = false;
        let mut last_y = 0.0;
        for (at_s, value) in self.at_s.iter().zip(&line.values) {
            let Some(value) = value else {
                is_open = false;
                continue;
            };
            let (x, y) = (self.x(*at_s), self.y(*value, most));
            let _ = match (is_open, line.steps) {
                (true, true) => write!(path, "L{x:.1} {last_y:.1}L{x:.1} {y:.1}"),
                (true, false) => write!(path, "L{x:.1} {y:.1}"),
                // A point alone shows as a dot by its round end.
                (false, _) => write!(path, "M{x:.1} {y:.1}h0.1"),
            };
            is_open = true;
            last_y = y;
        }
        let _ = write!(svg, "<path class=\"line {}\" d=\"{path}\"/>", line.class);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        for (value, most) in [
            (0.0, 1.0),
            (0.93, 1.0),
            (1.0, 1.0),
            (1.2, 2.0),
            (23.0, 25.0),
            (600.0, 1_000.0),
        ] {
            assert!((round_up(value) - most).abs() < 1e-9, "{value}");
        }
    }

    #[test]
    fn texts_of_others_cannot_leave_their_place() {
        let text = escape("<script>alert(\"x\")</script> & 'y'");
        assert!(!text.contains('<') && !text.contains('"') && !text.contains('\''));
    }
}
