//! Every `unsafe` says why it is sound: `// SAFETY:` on its line or just above
//! the statement it stands in; a `# Safety` section does for a declaration.

use super::{Finding, source::tokens};

/// Finds `unsafe` without a reason. `code` is the text without comments.
pub fn check(path: &str, text: &str, code: &str) -> Vec<Finding> {
    let lines: Vec<Line> = text
        .lines()
        .zip(code.lines())
        .map(|(text, code)| Line {
            text: text.trim(),
            code: code.trim(),
        })
        .collect();
    let tokens = tokens(code);
    let mut findings = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let next = |n: usize| tokens.get(at + n).map_or("", |t| t.text);
        // A pointer type: `unsafe fn(..)`, `unsafe extern "C" fn(..)`. An attribute: `unsafe(..)`.
        let is_type = next(1) == "fn" && next(2) == "("
            || next(1) == "extern" && next(2) == "fn" && next(3) == "(";
        if token.text != "unsafe" || is_type || next(1) == "(" {
            continue;
        }
        let declares = next(1) != "{";
        if !has_reason(&lines, token.line - 1, declares) {
            let text = "`unsafe` without `// SAFETY:` on or just above it";
            findings.push(Finding::new(path, token.line, text));
        }
    }
    findings
}

struct Line<'a> {
    text: &'a str,
    code: &'a str,
}

/// Whether the line or what belongs to it above says why.
fn has_reason(lines: &[Line], line: usize, declares: bool) -> bool {
    let says = |line: &Line| {
        line.text
            .find("//")
            .is_some_and(|at| line.text[at..].contains("SAFETY:"))
            || declares && line.text.starts_with("///") && line.text.contains("# Safety")
    };
    if says(&lines[line]) {
        return true;
    }
    let mut in_statement = true;
    for line in lines[..line].iter().rev() {
        let is_comment = line.code.is_empty() && !line.text.is_empty();
        let is_attribute = line.code.starts_with("#[") && line.code.ends_with(']');
        if is_comment && says(line) {
            return true;
        }
        if is_comment {
            in_statement = false;
        } else if is_attribute {
            continue;
        } else if !in_statement || line.code.is_empty() || line.code.ends_with([';', '{', '}', ','])
        {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source::code;

    fn lines(text: &str) -> Vec<usize> {
        let found = check("a.rs", text, &code(text));
        found.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn unsafe_without_a_reason_is_found() {
        assert_eq!(lines("fn f() {\n    unsafe { g() }\n}\n"), [2]);
        assert_eq!(lines("unsafe impl Send for X {}\n"), [1]);
        assert_eq!(lines("/// Reads.\nunsafe fn f() {}\n"), [2]);
        assert_eq!(lines("unsafe extern \"C\" {\n}\n"), [1]);
    }

    #[test]
    fn a_reason_on_or_above_is_seen() {
        assert!(lines("// SAFETY: valid.\nunsafe { g() }\n").is_empty());
        assert!(
            lines("// SAFETY: valid,\n// for long.\nlet x =\n    unsafe { g() };\n").is_empty()
        );
        assert!(lines("let x = unsafe { g() }; // SAFETY: valid.\n").is_empty());
        assert!(
            lines("// SAFETY: one owner.\n#[allow(x)]\nunsafe impl Send for X {}\n").is_empty()
        );
        assert!(
            lines("/// # Safety\n/// `p` is valid.\npub unsafe fn f(p: *const u8) {}\n").is_empty()
        );
    }

    #[test]
    fn a_reason_serves_one_statement_only() {
        assert_eq!(
            lines("// SAFETY: valid.\nunsafe { g() };\nunsafe { h() };\n"),
            [3]
        );
        assert_eq!(lines("// SAFETY: valid.\n\nunsafe { g() };\n"), [3]);
        assert_eq!(
            lines("/// # Safety\n/// None.\nfn f() {\n    unsafe { g() }\n}\n"),
            [4]
        );
    }

    #[test]
    fn the_word_elsewhere_is_no_unsafe() {
        assert!(lines("// unsafe\nlet x = \"unsafe {\";\n").is_empty());
        assert!(lines("#![deny(unsafe_code)]\n#[unsafe(no_mangle)]\n").is_empty());
        assert!(lines("type F = unsafe extern \"C\" fn(u32);\n").is_empty());
    }
}
