//! Where output and messages go, and in which form.

use std::io::{self, Write};

use serde::Serialize;

use super::{EXIT_DONE, EXIT_USAGE};

/// How a piece of text stands out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Style {
    #[default]
    Plain,
    Bold,
    Dim,
    Blue,
    Green,
    Loud,
    Error,
}

/// Output, messages, and what each can show.
pub struct Screen<'a> {
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    out_is_terminal: bool,
    err_is_terminal: bool,
    colour: bool,
    json: bool,
}

impl<'a> Screen<'a> {
    /// Colours are used only where `*_is_terminal`, and never under NO_COLOR.
    pub fn new(
        (out, out_is_terminal): (&'a mut dyn Write, bool),
        (err, err_is_terminal): (&'a mut dyn Write, bool),
    ) -> Self {
        // no-color.org: present and not empty.
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            out,
            err,
            out_is_terminal,
            err_is_terminal,
            colour,
            json: false,
        }
    }

    pub(super) fn forbid_colour(&mut self, forbid: bool) {
        self.colour &= !forbid;
    }

    pub(super) fn set_json(&mut self, json: bool) {
        self.json = json;
    }

    /// Whether the output is for programs.
    pub(super) fn json(&self) -> bool {
        self.json
    }

    pub(super) fn out_is_terminal(&self) -> bool {
        self.out_is_terminal
    }

    /// Text as the output shows it.
    pub(super) fn paint(&self, style: Style, text: &str) -> String {
        paint(self.colour && self.out_is_terminal, style, text)
    }

    /// Writes a line of output.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }

    /// Writes output as it is.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.out.flush()
    }

    /// Writes a value as JSON over several lines.
    pub(super) fn json_value(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *self.out, value)?;
        self.line("")
    }

    /// Writes a value as one line of JSON.
    pub(super) fn json_line(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut *self.out, value)?;
        self.line("")
    }

    /// Writes a message, for people, beside the output.
    pub(super) fn message(&mut self, text: &str) {
        // Nobody is left to tell where this fails.
        let _ = writeln!(self.err, "{text}");
    }

    /// Writes why the command failed.
    pub(super) fn complain(&mut self, text: &str) {
        let word = paint(self.colour && self.err_is_terminal, Style::Error, "error:");
        self.message(&format!("{word} {text}"));
    }

    /// Writes what clap says: help on the output, wrong usage as a message.
    pub(super) fn usage(&mut self, error: &clap::Error) -> u8 {
        let (terminal, code) = match error.use_stderr() {
            true => (self.err_is_terminal, EXIT_USAGE),
            false => (self.out_is_terminal, EXIT_DONE),
        };
        let text = match self.colour && terminal {
            true => error.render().ansi().to_string(),
            false => error.render().to_string(),
        };
        let place: &mut dyn Write = match code {
            EXIT_USAGE => self.err,
            _ => self.out,
        };
        let _ = place.write_all(text.as_bytes());
        code
    }
}

fn paint(colour: bool, style: Style, text: &str) -> String {
    let code = match style {
        Style::Plain => return text.to_owned(),
        _ if !colour || text.is_empty() => return text.to_owned(),
        Style::Bold => "1",
        Style::Dim => "2",
        Style::Blue => "34",
        Style::Green => "32",
        Style::Loud => "33",
        Style::Error => "1;31",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}
