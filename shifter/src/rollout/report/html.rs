//! A report as one page of HTML that needs nothing else.

use super::Report;

impl Report {
    /// Without plots yet.
    pub fn html(&self) -> String {
        format!(
            "<pre>{}</pre>",
            self.markdown().replace('&', "&amp;").replace('<', "&lt;")
        )
    }
}
