//! A report as one page of HTML that needs nothing else: no script, no font, no link.

use std::fmt::Write as _;

use super::{
    Report,
    plot::{Line, Mark, Plot, escape},
    words,
};

const STYLE: &str = "
:root{--blue:#2563c9;--green:#15803d;--loud:#b42318;--text:#1b1f24;--dim:#667085;--rule:#e4e7ec;--back:#fff;--soft:#f7f8fa}
@media(prefers-color-scheme:dark){:root{--blue:#7aa7ff;--green:#5fce8a;--loud:#ff8a7a;--text:#e6e8eb;--dim:#98a2b3;--rule:#2b3038;--back:#14171b;--soft:#1b1f25}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--back);margin:0}
main{max-width:860px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:17px;margin:36px 0 10px}
p{margin:4px 0 12px}.dim{color:var(--dim)}
.badge{display:inline-block;padding:2px 10px;border-radius:12px;font-size:13px;vertical-align:3px;margin-left:8px;color:#fff;background:var(--dim)}
.badge.good{background:var(--green)}.badge.bad{background:var(--loud)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--rule);vertical-align:top}
th{font-weight:600;font-size:13px;color:var(--dim)}td.what{width:38%;color:var(--dim)}
.scroll{overflow-x:auto}
figure{margin:0 0 22px}figcaption{font-weight:600;font-size:14px;margin-bottom:4px}
svg{width:100%;height:auto;background:var(--soft);border-radius:8px}
.key{font-weight:400;font-size:13px;margin-left:12px}.key::before{content:'';display:inline-block;width:14px;height:3px;border-radius:2px;background:currentColor;margin-right:5px;vertical-align:3px}
.blue{color:var(--blue)}.green{color:var(--green)}.plain{color:var(--text)}.faint{color:var(--dim)}
.line{fill:none;stroke:currentColor;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}
.line.faint{stroke-dasharray:4 4;stroke-width:1.4}
.grid{stroke:var(--rule);stroke-width:1}.tick{font-size:11px;fill:var(--dim)}
.mark{stroke:var(--dim);stroke-width:1;stroke-dasharray:2 3}.mark.loud{stroke:var(--loud);stroke-width:1.5;stroke-dasharray:none}
ol{list-style:none;padding:0;margin:0}li{display:flex;gap:14px;padding:5px 0;border-bottom:1px solid var(--rule)}
li time{flex:0 0 96px;color:var(--dim);font-variant-numeric:tabular-nums}li b{flex:0 0 96px;font-weight:600}li.loud b{color:var(--loud)}
";

fn share(value: f64) -> String {
    words::percent(value)
}

fn number(value: f64) -> String {
    match value {
        v if v >= 1_000.0 => format!("{:.0}k", v / 1_000.0),
        v if v.fract() == 0.0 => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}

fn span_ns(value: f64) -> String {
    crate::model::duration::short(value)
}

impl Report {
    /// See the module.
    pub fn html(&self) -> String {
        let title = format!("Rollout {} of {}", self.id, self.service);
        let class = match self.outcome.as_str() {
            "promoted" | "completed" => "good",
            _ => "bad",
        };
        let mut html = format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{title}: {outcome}</title><style>{STYLE}</style></head><body><main><h1>{title}<span class=\"badge {class}\">{outcome}</span></h1><p class=\"dim\">{headline}</p>",
            title = escape(&title),
            outcome = escape(&self.outcome),
            headline = escape(&words::headline(self)),
        );
        self.figures_table(&mut html);
        self.pools_table(&mut html);
        self.plots(&mut html);
        self.happened(&mut html);
        html.push_str("</main></body></html>");
        html
    }

    fn figures_table(&self, html: &mut String) {
        html.push_str("<table>");
        for (what, value) in words::figures(self) {
            // Writing into a String cannot fail.
            let _ = write!(
                html,
                "<tr><td class=\"what\">{}</td><td>{}</td></tr>",
                escape(what),
                escape(&value)
            );
        }
        html.push_str("</table>");
    }

    fn pools_table(&self, html: &mut String) {
        html.push_str("<h2>Pools</h2><div class=\"scroll\"><table><tr><th>pool</th><th>new flows</th><th>failed</th><th>share, 95% interval</th><th>handshake 50, 90, 99%</th><th>first byte 50, 90, 99%</th></tr>");
        for pool in &self.pools {
            html.push_str("<tr>");
            for (index, cell) in words::pool_cells(self, pool).iter().enumerate() {
                let class = match index {
                    0 => pool.pool.as_str(),
                    _ => "",
                };
                let _ = write!(
                    html,
                    "<td class=\"{}\">{}</td>",
                    escape(class),
                    escape(cell)
                );
            }
            html.push_str("</tr>");
        }
        html.push_str("</table></div>");
    }

    fn plots(&self, html: &mut String) {
        html.push_str("<h2>Over time</h2>");
        if self.points.is_empty() {
            let why = self.unmeasured.as_deref().unwrap_or("nothing was measured");
            let _ = write!(html, "<p class=\"dim\">No plots: {}.</p>", escape(why));
            return;
        }
        let at_s: Vec<f64> = self.points.iter().map(|point| point.at_s).collect();
        let whole_s = (self.ended_unix_ms - self.began_unix_ms).max(0) as f64 / 1e3;
        let until_s = at_s.last().copied().unwrap_or(0.0).max(whole_s);
        let marks = self.marks();
        let candidate = self.candidate.as_str();
        let of_pool = |get: &dyn Fn(&super::Point, usize) -> Option<f64>, pool: usize| {
            self.points.iter().map(|point| get(point, pool)).collect()
        };
        let both = |get: &dyn Fn(&super::Point, usize) -> Option<f64>| {
            ["blue", "green"]
                .into_iter()
                .enumerate()
                .map(|(pool, name)| Line {
                    name,
                    class: name,
                    values: of_pool(get, pool),
                    steps: false,
                })
                .collect::<Vec<_>>()
        };
        let weights = vec![
            Line {
                name: "set",
                class: "plain",
                values: self.points.iter().map(|point| Some(point.weight)).collect(),
                steps: true,
            },
            Line {
                name: "observed",
                class: candidate,
                values: self.points.iter().map(|point| point.observed).collect(),
                steps: false,
            },
        ];
        let mut handshakes = both(&|point, pool| point.handshake_ns[pool][0]);
        handshakes.push(Line {
            name: "99% of the candidate",
            class: "faint",
            values: of_pool(
                &|point, pool| point.handshake_ns[pool][1],
                usize::from(candidate == "green"),
            ),
            steps: false,
        });
        let failures = both(&|point, pool| {
            let (failed, of) = (point.failures[pool], point.attempts[pool]);
            (of > 0 || failed > 0).then(|| failed as f64 / of.max(failed) as f64)
        });
        let titled = [
            (
                format!("Share of new flows of {candidate}"),
                weights,
                0.05,
                share as fn(f64) -> String,
            ),
            ("Failures of new flows".to_owned(), failures, 0.01, share),
            ("Handshake, 50%".to_owned(), handshakes, 100_000.0, span_ns),
            (
                "New flows a second".to_owned(),
                both(&|point, pool| Some(point.flows_per_s[pool])),
                1.0,
                number,
            ),
            (
                "Live flows".to_owned(),
                both(&|point, pool| Some(point.live[pool] as f64)),
                1.0,
                number,
            ),
        ];
        for (title, lines, at_least, show) in titled {
            let plot = Plot {
                title: &title,
                at_s: &at_s,
                until_s,
                lines,
                marks: &marks,
                at_least,
                show,
            };
            html.push_str(&plot.svg());
        }
        html.push_str(
            "<p class=\"dim\">Dashed: a step begins. Red: it holds, or begins to roll back.</p>",
        );
    }

    fn marks(&self) -> Vec<Mark> {
        let marks = self.notes.iter().filter_map(|note| {
            let class = match note.kind.as_str() {
                "step" => "",
                "holding" | "rolling back" => "loud",
                _ => return None,
            };
            Some(Mark {
                at_s: (note.at_unix_ms - self.began_unix_ms) as f64 / 1e3,
                class,
                text: format!("{}: {}", note.kind, note.text),
            })
        });
        marks.collect()
    }

    fn happened(&self, html: &mut String) {
        html.push_str("<h2>What happened</h2><ol>");
        for note in &self.notes {
            let class = match note.kind.as_str() {
                "holding" | "rolling back" => "loud",
                _ => "",
            };
            let _ = write!(
                html,
                "<li class=\"{class}\"><time>{}</time><b>{}</b><span>{}</span></li>",
                escape(&words::since(self, note.at_unix_ms)),
                escape(&note.kind),
                escape(&note.text)
            );
        }
        html.push_str("</ol>");
    }
}
