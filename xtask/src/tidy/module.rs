//! Every module begins with a `//!` sentence and is short.

use super::{File, Finding};

/// Longer files are warned of.
const LINES_MAX: usize = 500;

/// Finds a module without its sentence.
pub fn check(file: &File) -> Option<Finding> {
    let first = file.text.lines().next().unwrap_or_default();
    let says = first
        .strip_prefix("//!")
        .is_some_and(|s| !s.trim().is_empty());
    (!says).then(|| {
        let text = "the first line is no `//! sentence` that says what the module is";
        Finding::new(&file.path, 1, text)
    })
}

/// A file so long that it should be two.
pub fn warn_of_length(file: &File) -> Option<Finding> {
    let lines = file.text.lines().count();
    (file.path.ends_with(".rs") && lines > LINES_MAX).then(|| {
        let text = format!("{lines} lines: above {LINES_MAX} a file is better two");
        Finding::new(&file.path, 0, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> File {
        File {
            path: "a.rs".to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_module_without_a_sentence_is_found() {
        assert!(check(&file("use std::fmt;\n")).is_some());
        assert!(check(&file("//!\nuse std::fmt;\n")).is_some());
        assert!(check(&file("")).is_some());
        assert_eq!(check(&file("//! Reads weights.\n")), None);
    }

    #[test]
    fn a_long_file_is_warned_of() {
        assert!(warn_of_length(&file(&"x\n".repeat(501))).is_some());
        assert_eq!(warn_of_length(&file(&"x\n".repeat(500))), None);
    }
}
