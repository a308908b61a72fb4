//! A report as Markdown.

use super::{Report, words};

impl Report {
    /// For a ticket or a chat.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "# Rollout {} of {}: {}\n\n{}\n\n",
            self.id,
            self.service,
            self.outcome,
            words::headline(self)
        );
        text.push_str("| | |\n|---|---|\n");
        for (what, value) in words::figures(self) {
            text.push_str(&format!("| {what} | {value} |\n"));
        }
        text.push_str("\n## Pools\n\n| pool | new flows | failed | share, 95% interval | handshake 50%, 90%, 99% | first byte 50%, 90%, 99% |\n|---|---|---|---|---|---|\n");
        for pool in &self.pools {
            text.push_str(&format!(
                "| {} |\n",
                words::pool_cells(self, pool).join(" | ")
            ));
        }
        text.push_str("\n## What happened\n\n");
        for note in &self.notes {
            text.push_str(&format!(
                "- {} **{}** {}\n",
                words::since(self, note.at_unix_ms),
                note.kind,
                note.text.replace('|', "\\|")
            ));
        }
        text
    }
}
