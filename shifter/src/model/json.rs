//! JSON (RFC 8259) into the tree of [`super::tree`], with places and without
//! keys that occur twice, which serde_json would take in silence.

use super::tree::{Entry, Fault, Node, Value};

/// Nesting beyond this is refused, so that a hostile file cannot use up the stack.
const DEPTH: usize = 32;

/// Reads one JSON value.
pub fn from_json(text: &str) -> Result<Node, Fault> {
    let mut reader = Reader { text, at: 0 };
    let node = reader.value(0)?;
    reader.space();
    match reader.peek() {
        None => Ok(node),
        Some(_) => Err(reader.fault("nothing may follow the value")),
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn fault(&self, text: &str) -> Fault {
        Fault::new(self.at, format!("no JSON: {text}"))
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), Fault> {
        self.space();
        if self.peek() != Some(byte) {
            return Err(self.fault(&format!("{:?} is missing here", char::from(byte))));
        }
        self.at += 1;
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<Node, Fault> {
        self.space();
        if depth > DEPTH {
            return Err(self.fault("nested too deeply"));
        }
        let at = self.at;
        let value = match self.peek() {
            Some(b'{') => self.table(depth)?,
            Some(b'[') => self.array(depth)?,
            Some(b'"') => Value::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.word()?,
        };
        Ok(Node { at, value })
    }

    fn table(&mut self, depth: usize) -> Result<Value, Fault> {
        self.at += 1;
        let mut entries: Vec<Entry> = Vec::new();
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Table(entries));
        }
        loop {
            self.space();
            let at = self.at;
            if self.peek() != Some(b'"') {
                return Err(self.fault("a key in double quotes is missing here"));
            }
            let key = self.string()?;
            if entries.iter().any(|entry| entry.key == key) {
                return Err(Fault::new(at, format!("the key {key:?} occurs twice")));
            }
            self.expect(b':')?;
            let node = self.value(depth + 1)?;
            entries.push(Entry { key, at, node });
            self.space();
            if self.peek() == Some(b',') {
                self.at += 1;
                continue;
            }
            self.expect(b'}')?;
            return Ok(Value::Table(entries));
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, Fault> {
        self.at += 1;
        let mut items = Vec::new();
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            if self.peek() == Some(b',') {
                self.at += 1;
                continue;
            }
            self.expect(b']')?;
            return Ok(Value::Array(items));
        }
    }

    /// The token is found here; its escapes are left to serde_json.
    fn string(&mut self) -> Result<String, Fault> {
        let start = self.at;
        let mut end = start + 1;
        let bytes = self.text.as_bytes();
        loop {
            match bytes.get(end) {
                None => return Err(self.fault("this string has no end")),
                Some(b'"') => break,
                Some(b'\\') => end += 2,
                Some(_) => end += 1,
            }
        }
        let text = serde_json::from_str(&self.text[start..=end])
            .map_err(|_| self.fault("this string has a wrong escape or a control character"))?;
        self.at = end + 1;
        Ok(text)
    }

    fn number(&mut self) -> Value {
        let start = self.at;
        while matches!(
            self.peek(),
            Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')
        ) {
            self.at += 1;
        }
        let text = &self.text[start..self.at];
        if let Ok(number) = serde_json::from_str(text) {
            return Value::Integer(number);
        }
        match serde_json::from_str::<f64>(text) {
            // A whole one that is too large for any key is no number with a point.
            Ok(number) if number.is_finite() && text.contains(['.', 'e', 'E']) => {
                Value::Float(number)
            }
            _ => Value::Other("no whole number"),
        }
    }

    fn word(&mut self) -> Result<Value, Fault> {
        for (word, value) in [
            ("true", Value::Bool(true)),
            ("false", Value::Bool(false)),
            ("null", Value::Other("null")),
        ] {
            if self.text[self.at..].starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err(self.fault("a value is missing here"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_serde_json_reads() {
        let node = from_json(r#" {"a": [1, "x\"é\u00e9", true], "b": {}} "#).unwrap();
        let Value::Table(entries) = node.value else {
            panic!("no table")
        };
        assert_eq!((entries[0].key.as_str(), entries[0].at), ("a", 2));
        let Value::Array(items) = &entries[0].node.value else {
            panic!("no list")
        };
        assert_eq!(items[1].value, Value::String("x\"éé".into()));
        assert_eq!(entries[1].node.value, Value::Table(vec![]));
    }

    #[test]
    fn broken_texts_are_refused_and_never_panic() {
        let whole = r#"{"a": [1, "x\u00e9é", null], "b": {"c": false}}"#;
        for end in 0..whole.len() {
            if whole.is_char_boundary(end) {
                assert!(from_json(&whole[..end]).is_err(), "{:?}", &whole[..end]);
            }
        }
        for text in [
            r#"{"a":1,"a":2}"#,
            "[1,]",
            "{} {}",
            r#""\"#,
            "\"\\é",
            "{1:2}",
        ] {
            assert!(from_json(text).is_err(), "{text:?} was taken");
        }
        assert!(from_json(&"[".repeat(100_000)).is_err());
    }
}
