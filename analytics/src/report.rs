//! A machine's history and incidents on one page.

mod chart;
mod content;
mod gather;
mod page;
mod text;

pub use self::content::{Incident, Operation, Point, Report, Series};
pub use self::gather::{report, report_with};
use crate::error::Result;

impl Report {
    /// The report as one HTML file without external resources, which can be archived, mailed and printed.
    #[must_use]
    pub fn to_html(&self) -> String {
        page::html(self)
    }

    /// The report as JSON.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }
}
