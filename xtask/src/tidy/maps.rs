//! Every map is in docs/maps.md, and every map there is in the code.

use super::{
    Finding,
    source::{code, tokens},
};

/// Where maps are declared.
pub const CODE: &str = "shifter-ebpf/src/maps.rs";
/// Where they are described, one row each: name in backquotes first.
pub const DOC: &str = "docs/maps.md";

/// Compares declarations and rows.
pub fn check(source: &str, doc: &str) -> Vec<Finding> {
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
        assert_eq!(check(SOURCE, doc), []);
    }

    #[test]
    fn a_map_without_a_row_is_found() {
        let found = check(SOURCE, "| `FLOWS` | the table |\n");
        assert_eq!(
            found,
            [Finding::new(CODE, 4, "map VIPS has no row in docs/maps.md")]
        );
    }

    #[test]
    fn a_row_without_a_map_is_found() {
        let found = check(SOURCE, "| `FLOWS` |\n| `VIPS` |\n| `GONE` |\n");
        let text = "map GONE is not declared in shifter-ebpf/src/maps.rs";
        assert_eq!(found, [Finding::new(DOC, 3, text)]);
    }
}
