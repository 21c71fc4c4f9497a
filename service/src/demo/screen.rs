//! The output of the demo: a line for each checkpoint, and on a terminal a status line below them.

use std::io::IsTerminal as _;

use retrovisor_proto::v1::Checkpoint;

use crate::terminal::{output, paragraph, quantity, verdict, width};

/// The terminal, or a plain stream of lines.
pub(super) struct Screen {
    live: bool,
    headed: bool,
    status: String,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { live: std::io::stdout().is_terminal(), headed: false, status: String::new() }
    }

    /// A heading.
    pub(super) fn title(&mut self, text: &str) {
        self.clear();
        self.status.clear();
        outln!();
        for line in paragraph::lines(text) {
            output::styled_line(output::BOLD, &line);
        }
        self.headed = false;
    }

    /// A text, broken at the terminal's width.
    pub(super) fn text(&mut self, text: &str) {
        self.clear();
        paragraph::print(text);
        self.redraw();
    }

    /// A line that the guest wrote.
    pub(super) fn guest(&mut self, text: &str) {
        self.clear();
        outln!("  guest │ {text}");
        self.redraw();
    }

    /// What is being done now; shown on terminals only.
    pub(super) fn status(&mut self, text: &str) {
        self.clear();
        text.clone_into(&mut self.status);
        self.redraw();
    }

    /// One checkpoint.
    pub(super) fn checkpoint(&mut self, taken: &Checkpoint) {
        self.clear();
        if !self.headed {
            outln!("  #  name    pause      dirty      stored   score  verdict");
            self.headed = true;
        }
        let score = taken.score.map_or_else(|| "-".to_owned(), |score| format!("{score:.1}"));
        let reason = taken.reasons.first().map_or(String::new(), |reason| format!("  {reason}"));
        let pause = if taken.kind == "before-rollback" {
            "kept".to_owned()
        } else {
            quantity::duration(taken.pause_us)
        };
        let line = format!(
            "{:>3}  {:.6}  {pause:>8}  {:>6}  {:>10}  {score:>6}  {:<7}{reason}",
            taken.sequence,
            taken.name,
            taken.dirty_pages,
            quantity::bytes(taken.stored_bytes),
            verdict::word(taken.verdict()),
        );
        output::styled_line(verdict::style(taken.verdict()), &width::cut(&line, width::terminal()));
        self.redraw();
    }

    fn clear(&self) {
        if self.live && !self.status.is_empty() {
            output::clear_status();
        }
    }

    fn redraw(&self) {
        if self.live && !self.status.is_empty() {
            output::status(&self.status);
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.clear();
    }
}
