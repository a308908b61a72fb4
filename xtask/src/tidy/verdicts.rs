//! Verdict numbers are for ever: docs/verdicts.md and the code agree, and rows
//! of the page are only added.
//!
//! A verdict that the code no longer has keeps its row, its meaning then begins
//! with "retired", and its number is not given again.

use super::{
    Finding,
    source::{self, tokens},
};

/// Where verdicts are declared.
pub const CODE: &str = "shifter-common/src/abi/stats.rs";
/// The table that outlives them.
pub const DOC: &str = "docs/verdicts.md";

const RETIRED: &str = "retired";

#[derive(Clone, PartialEq, Eq, Debug)]
struct Row {
    number: u32,
    name: String,
    meaning: String,
    line: usize,
}

/// Compares code and page.
pub fn check(code: &str, doc: &str) -> Vec<Finding> {
    let declared = declared(code);
    let described = described(doc);
    let mut findings = Vec::new();
    let mut find = |path, row: &Row, text| findings.push(Finding::new(path, row.line, text));
    if declared.is_empty() {
        return vec![Finding::new(
            CODE,
            0,
            "no verdict was found: `enum Verdict` has another form",
        )];
    }
    for (at, row) in described.iter().enumerate() {
        if row.number as usize != at {
            let text = format!(
                "number {} stands where {at} belongs: rows are only added",
                row.number
            );
            find(DOC, row, text);
        }
        let retired = row.meaning.starts_with(RETIRED);
        if !retired && !declared.iter().any(|d| d.number == row.number) {
            let text = format!(
                "verdict {} {} is not in {CODE}: a row stays, with \"{RETIRED}\" before its meaning",
                row.number, row.name
            );
            find(DOC, row, text);
        }
    }
    for row in &declared {
        let Some(page) = described.iter().find(|d| d.number == row.number) else {
            let text = format!(
                "verdict {} {} has no row in {DOC}: cargo xtask tidy --fix",
                row.number, row.name
            );
            find(CODE, row, text);
            continue;
        };
        if page.meaning.starts_with(RETIRED) {
            find(
                CODE,
                row,
                format!(
                    "number {} was {} and is retired: take the next free one",
                    row.number, page.name
                ),
            );
        } else if page.name != row.name {
            find(
                CODE,
                row,
                format!(
                    "number {} is {} in {DOC}: a number keeps its name, a new verdict takes the next free one",
                    row.number, page.name
                ),
            );
        } else if page.meaning != row.meaning {
            find(
                CODE,
                row,
                format!("verdict {} means {:?} in {DOC}", row.name, page.meaning),
            );
        }
    }
    findings
}

/// The page with a row for each verdict that has none yet.
pub fn fix(code: &str, doc: &str) -> String {
    let described = described(doc);
    let mut doc = doc.to_owned();
    for row in declared(code) {
        if !described.iter().any(|d| d.number == row.number) {
            doc += &format!("| {} | `{}` | {} |\n", row.number, row.name, row.meaning);
        }
    }
    doc
}

/// Rows `| number | `name` | meaning |`.
fn described(doc: &str) -> Vec<Row> {
    doc.lines()
        .enumerate()
        .filter_map(|(at, line)| {
            let mut cells = line
                .strip_prefix("| ")?
                .strip_suffix(" |")?
                .splitn(3, " | ");
            Some(Row {
                number: cells.next()?.parse().ok()?,
                name: cells.next()?.trim_matches('`').to_owned(),
                meaning: cells.next()?.to_owned(),
                line: at + 1,
            })
        })
        .collect()
}

/// Variants of `enum Verdict` with their numbers and doc comments; the name is
/// that of the table `VERDICTS`, or the variant's in its absence.
fn declared(text: &str) -> Vec<Row> {
    let code = source::code(text);
    let tokens = tokens(&code);
    let lines: Vec<&str> = text.lines().collect();
    let word = |at: usize| tokens.get(at).map_or("", |t| t.text);
    let Some(start) = (0..tokens.len()).find(|at| word(*at) == "enum" && word(at + 1) == "Verdict")
    else {
        return Vec::new();
    };
    let mut rows = Vec::new();
    for (at, token) in tokens.iter().enumerate().skip(start + 3) {
        if token.text == "}" {
            break;
        }
        if word(at + 1) == "="
            && let Ok(number) = word(at + 2).parse()
        {
            rows.push(Row {
                number,
                name: name_of(text, token.text).unwrap_or_else(|| token.text.to_owned()),
                meaning: doc_above(&lines, token.line),
                line: token.line,
            });
        }
    }
    rows
}

/// `"name"` in `(Verdict::Variant, "name")`.
fn name_of(text: &str, variant: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("(Verdict::{variant}, \""))?;
    Some(rest.split('"').next()?.to_owned())
}

/// The doc comment above a line (from 1), as one line.
fn doc_above(lines: &[&str], line: usize) -> String {
    let above = lines[..line - 1].iter().rev();
    let mut parts: Vec<&str> = above
        .map_while(|line| line.trim().strip_prefix("///"))
        .map(str::trim)
        .collect();
    parts.reverse();
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "pub enum Verdict {\n    /// Not\n    /// ours.\n    NotOurs = 0,\n    /// No flow.\n    NoFlow = 1,\n}\n\
        pub const VERDICTS: X = [\n    (Verdict::NotOurs, \"not_ours\"),\n    (Verdict::NoFlow, \"no_flow\"),\n];\n";
    const PAGE: &str = "# Verdicts\n\n| number | name | meaning |\n|---|---|---|\n\
        | 0 | `not_ours` | Not ours. |\n| 1 | `no_flow` | No flow. |\n";

    fn only(code: &str, page: &str) -> String {
        let found = check(code, page);
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].to_string()
    }

    #[test]
    fn code_and_page_that_agree_hold() {
        assert_eq!(check(TWO, PAGE), []);
        assert_eq!(fix(TWO, PAGE), PAGE);
    }

    #[test]
    fn a_verdict_without_a_row_is_found_and_added() {
        let page = PAGE.replace("| 1 | `no_flow` | No flow. |\n", "");
        assert!(only(TWO, &page).contains("has no row"));
        assert_eq!(fix(TWO, &page), PAGE);
    }

    #[test]
    fn a_number_with_another_name_is_found() {
        let code = TWO.replace("\"no_flow\"", "\"flowless\"");
        assert!(only(&code, PAGE).contains("keeps its name"));
    }

    #[test]
    fn a_verdict_that_vanished_is_found_until_its_row_is_retired() {
        let code = TWO.replace("    /// No flow.\n    NoFlow = 1,\n", "");
        assert!(only(&code, PAGE).contains("a row stays"));
        let retired = PAGE.replace("| No flow. |", "| retired: No flow. |");
        assert_eq!(check(&code, &retired), []);
        assert!(only(TWO, &retired).contains("is retired"));
    }

    #[test]
    fn a_row_that_was_taken_out_is_found() {
        let page = PAGE.replace("| 0 | `not_ours` | Not ours. |\n", "");
        let found = check(TWO, &page);
        assert!(
            found.iter().any(|f| f.text.contains("rows are only added")),
            "{found:?}"
        );
    }

    #[test]
    fn another_meaning_is_found() {
        let code = TWO.replace("/// No flow.", "/// Lost.");
        assert!(only(&code, PAGE).contains("means"));
    }
}
