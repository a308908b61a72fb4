//! Every map is in docs/maps.md with its number of entries, and every map
//! there is in the code.

use super::{
    Finding,
    source::{code, tokens},
};

/// Where maps are declared.
pub const CODE: &str = "shifter-ebpf/src/maps.rs";
/// Where they are described, one row each: name in backquotes first.
pub const DOC: &str = "docs/maps.md";

/// Where the limits are that entries are counted by.
pub const LIMITS: [&str; 3] = [
    "shifter-common/src/abi/mod.rs",
    "shifter-common/src/abi/ring.rs",
    "shifter-common/src/abi/stats.rs",
];
/// Their entries are set when they are made.
const SIZED_AT_START: [&str; 2] = ["FLOWS", "FLOW_TIMES"];

/// Compares declarations and rows; `limits` are the files [`LIMITS`].
pub fn check(source: &str, doc: &str, limits: &[&str]) -> Vec<Finding> {
    let mut findings = check_names(source, doc);
    let code = code(source);
    for (name, line) in described(doc) {
        let row = doc.lines().nth(line - 1).unwrap_or_default();
        let Some(entries) = entries(&code, &name, limits) else {
            continue;
        };
        if !SIZED_AT_START.contains(&name.as_str()) && said(row) != Some(entries) {
            let text = format!(
                "map {name} has {entries} entries in {CODE}, and its row does not say so: the second cell is KIND, ENTRIES"
            );
            findings.push(Finding::new(DOC, line, text));
        }
    }
    findings
}

/// The number after the first comma of a row's second cell.
fn said(row: &str) -> Option<u64> {
    let cell = row.split('|').nth(2)?;
    number(cell.split_once(", ")?.1.split([' ', ';']).next()?)
}

/// A number with separators of thousands: `8,192` or `8_192`.
fn number(text: &str) -> Option<u64> {
    text.trim_matches([',', ' '])
        .replace([',', '_'], "")
        .parse()
        .ok()
}

/// What a map's declaration gives as `with_max_entries`.
fn entries(code: &str, name: &str, limits: &[&str]) -> Option<u64> {
    let declared = code.split_once(&format!("static {name}:"))?.1;
    let argument = declared.split_once("with_max_entries(")?.1;
    evaluate(argument.split([',', ')']).next()?, limits)
}

/// A product or quotient of numbers and constants.
fn evaluate(expression: &str, limits: &[&str]) -> Option<u64> {
    if let Some((left, right)) = expression.rsplit_once('*') {
        return Some(evaluate(left, limits)? * evaluate(right, limits)?);
    }
    if let Some((left, right)) = expression.rsplit_once('/') {
        return evaluate(left, limits)?.checked_div(evaluate(right, limits)?);
    }
    let word = expression.trim().rsplit("::").next()?;
    number(word).or_else(|| {
        limits.iter().find_map(|file| {
            let value = file.split_once(&format!("const {word}: u32 ="))?.1;
            evaluate(value.split(';').next()?, limits)
        })
    })
}

fn check_names(source: &str, doc: &str) -> Vec<Finding> {
    let declared = declared(source);
    let described = described(doc);
    let mut findings = Vec::new();
    for (name, line) in &declared {
        if !described.iter().any(|(d, _)| d == name) {
            let text = format!("map {name} has no row in {DOC}");
            findings.push(Finding::new(CODE, *line, text));
        }
    }
    for (name, line) in &described {
        if !declared.iter().any(|(d, _)| d == name) {
            let text = format!("map {name} is not declared in {CODE}");
            findings.push(Finding::new(DOC, *line, text));
        }
    }
    findings
}

/// Statics under `#[map]`, `#[map(..)]` or `#[btf_map]`.
fn declared(source: &str) -> Vec<(String, usize)> {
    let code = code(source);
    let tokens = tokens(&code);
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        let text = |n: usize| tokens.get(at + n).map_or("", |t| t.text);
        if text(0) == "#" && text(1) == "[" && matches!(text(2), "map" | "btf_map") {
            let place = tokens[at..].iter().position(|t| t.text == "static");
            let named = place
                .map(|n| at + n + 1)
                .map(|n| if tokens[n].text == "mut" { n + 1 } else { n });
            if let Some(token) = named.and_then(|n| tokens.get(n)) {
                found.push((token.text.to_owned(), token.line));
            }
        }
    }
    found
}

/// Names in the first cell of table rows.
fn described(doc: &str) -> Vec<(String, usize)> {
    doc.lines()
        .enumerate()
        .filter_map(|(number, line)| {
            let name = line.strip_prefix("| `")?.split('`').next()?;
            Some((name.to_owned(), number + 1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "#[map]\npub static FLOWS: Array<FlowSet> = Array::new();\n\
        #[map(name = \"VIPS\")]\npub static mut VIPS: HashMap<K, V> = HashMap::new();\n\
        pub static NOT_A_MAP: u32 = 0;\n";

    #[test]
    fn maps_and_rows_that_agree_hold() {
        let doc = "| Map | Is |\n|---|---|\n| `FLOWS` | the table |\n| `VIPS` | addresses |\n";
        assert_eq!(check(SOURCE, doc, &[]), []);
    }

    #[test]
    fn a_map_without_a_row_is_found() {
        let found = check(SOURCE, "| `FLOWS` | the table |\n", &[]);
        assert_eq!(
            found,
            [Finding::new(CODE, 4, "map VIPS has no row in docs/maps.md")]
        );
    }

    #[test]
    fn a_row_without_a_map_is_found() {
        let found = check(SOURCE, "| `FLOWS` |\n| `VIPS` |\n| `GONE` |\n", &[]);
        let text = "map GONE is not declared in shifter-ebpf/src/maps.rs";
        assert_eq!(found, [Finding::new(DOC, 3, text)]);
    }

    #[test]
    fn entries_that_the_code_does_not_have_are_found() {
        let source = "#[map]\npub static VIPS: HashMap<K, u32> =\n    HashMap::with_max_entries(2 * MAX_SERVICES, 0);\n\
            #[map]\npub static RINGS: Array<u64> = Array::with_max_entries(MAX_SLOTS / ring::LANES, F);\n";
        let limits = [
            "pub const MAX_SERVICES: u32 = 8_192;\npub const MAX_SLOTS: u32 = 4 * 1_024;\n",
            "pub const LANES: u32 = 4;\n",
        ];
        let right = "| `VIPS` | hash, 16,384 | x |\n| `RINGS` | array of u64, 1,024, mmap | x |\n";
        assert_eq!(check(source, right, &limits), []);
        let wrong = right.replace("16,384", "8,192");
        let found = check(source, &wrong, &limits);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].text.contains("VIPS has 16384 entries"));
    }
}
