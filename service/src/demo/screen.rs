//! What the demo shows: a line a checkpoint, and on a terminal a status line that moves.

use std::io::{IsTerminal as _, Write as _};

use retrovisor_proto::v1::Checkpoint;

use crate::terminal::{paragraph, style, table};

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
        self.wipe();
        self.status.clear();
        println!();
        for line in paragraph::lines(text) {
            println!("{}", style::bold(&line));
        }
        self.headed = false;
    }

    /// A line of the story, broken at the terminal's width.
    pub(super) fn say(&mut self, text: &str) {
        self.wipe();
        for line in paragraph::lines(text) {
            println!("{line}");
        }
        self.redraw();
    }

    /// A line that the guest wrote.
    pub(super) fn guest(&mut self, text: &str) {
        self.wipe();
        println!("  guest │ {}", style::printable(text));
        self.redraw();
    }

    /// What is being done now; shown on terminals only.
    pub(super) fn status(&mut self, text: &str) {
        self.wipe();
        text.clone_into(&mut self.status);
        self.redraw();
    }

    /// One checkpoint.
    pub(super) fn checkpoint(&mut self, taken: &Checkpoint) {
        self.wipe();
        if !self.headed {
            println!("  #  name    pause      dirty      stored   score  verdict");
            self.headed = true;
        }
        let score = taken.score.map_or_else(|| "-".to_owned(), |score| format!("{score:.1}"));
        let reason =
            taken.reasons.first().map_or(String::new(), |reason| format!("  {}", style::printable(reason)));
        let line = format!(
            "{:>3}  {:.6}  {:>8}  {:>6}  {:>10}  {:>6}  {:<7}{reason}",
            taken.sequence,
            taken.name,
            if taken.kind == "before-rollback" { "kept".to_owned() } else { style::duration(taken.pause_us) },
            taken.dirty_pages,
            style::bytes(taken.stored_bytes),
            score,
            style::verdict(taken.verdict()),
        );
        let width = table::terminal_width();
        let cut: String = line.chars().take(width).collect();
        println!("{}", style::painted(taken.verdict(), cut.trim_end()));
        self.redraw();
    }

    fn wipe(&self) {
        if self.live && !self.status.is_empty() {
            print!("\r\x1b[K");
        }
    }

    fn redraw(&self) {
        if self.live && !self.status.is_empty() {
            print!("… {}", self.status);
            // A terminal that went away is noticed at the next line.
            let _ = std::io::stdout().flush();
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.wipe();
    }
}
