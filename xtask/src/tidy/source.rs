//! Rust source without its comments and literals, and its words.

/// The text with comments, strings and characters blanked, line for line.
pub fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = skip(bytes, at);
        if end > at {
            let blank = |b: &u8| if *b == b'\n' { b'\n' } else { b' ' };
            out.extend(bytes[at..end].iter().map(blank));
            at = end;
        } else if is_word(bytes[at]) {
            let word = bytes[at..].iter().take_while(|b| is_word(**b)).count();
            out.extend_from_slice(&bytes[at..at + word]);
            at += word;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where the comment or literal that begins at `at` ends; `at` if none begins.
fn skip(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    match rest {
        [b'/', b'/', ..] => at + rest.iter().take_while(|b| **b != b'\n').count(),
        [b'/', b'*', ..] => at + block_comment(rest),
        [b'"', ..] => at + 1 + string(&rest[1..]),
        [b'b' | b'c', b'"', ..] => at + 2 + string(&rest[2..]),
        [b'r', b'"' | b'#', ..] => at + raw_string(rest, 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] => at + raw_string(rest, 2),
        [b'b', b'\'', ..] => at + 1 + character(&rest[1..]),
        [b'\'', ..] => at + character(rest),
        _ => at,
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length up to and with the closing quote; `rest` begins behind the opening one.
fn string(rest: &[u8]) -> usize {
    let mut at = 0;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Length of `r#"..."#` with `prefix` letters before the hashes; 0 for a raw identifier.
fn raw_string(rest: &[u8], prefix: usize) -> usize {
    let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
    let open = prefix + hashes;
    if rest.get(open) != Some(&b'"') {
        return 0;
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    rest[open + 1..]
        .windows(close.len())
        .position(|window| window == close)
        .map_or(rest.len(), |found| open + 1 + found + close.len())
}

/// Length of a character literal; 0 for a lifetime.
fn character(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        return rest
            .iter()
            .skip(3)
            .position(|b| *b == b'\'')
            .map_or(0, |found| found + 4);
    }
    // One character has at most four bytes.
    let end = rest.iter().skip(1).take(5).position(|b| *b == b'\'');
    match end {
        Some(length) if length > 0 && is_one_character(&rest[1..1 + length]) => length + 2,
        _ => 0,
    }
}

fn is_one_character(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| text.chars().count() == 1)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// A word or a single sign of blanked code, and its line from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token<'a> {
    pub text: &'a str,
    pub line: usize,
}

/// Words and signs of blanked code.
pub fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let word = rest.bytes().take_while(|b| is_word(*b)).count();
            let length = if word > 0 { word } else { first.len_utf8() };
            found.push(Token {
                text: &rest[..length],
                line: number + 1,
            });
            rest = rest[length..].trim_start();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let code = code(text);
        tokens(&code).iter().map(|t| t.text.to_owned()).collect()
    }

    #[test]
    fn comments_and_literals_are_blanked() {
        assert_eq!(words("a // unsafe\nb /* x /* y */ z */ c"), ["a", "b", "c"]);
        assert_eq!(
            words(r#"f("un\"safe", 'x', '\'', b'y', '\u{1F600}')"#).len(),
            7
        );
        assert_eq!(words(r###"r#"unsafe " x"# done"###), ["done"]);
        assert_eq!(words("b\"aya\" br\"aya\" c\"aya\""), Vec::<String>::new());
    }

    #[test]
    fn lifetimes_and_raw_identifiers_are_code() {
        assert_eq!(words("&'a str"), ["&", "'", "a", "str"]);
        assert_eq!(words("r#type"), ["r", "#", "type"]);
        assert_eq!(words("for 'b in"), ["for", "'", "b", "in"]);
    }

    #[test]
    fn lines_stay_where_they_are() {
        let code = code("\"one\ntwo\"\nunsafe");
        assert_eq!(
            tokens(&code),
            [Token {
                text: "unsafe",
                line: 3
            }]
        );
    }

    #[test]
    fn a_word_that_ends_like_a_prefix_is_no_string_prefix() {
        assert_eq!(words("grab\"x\" after"), ["grab", "after"]);
    }
}
