//! Sentences that fit the terminal.

use super::clean::clean;
use super::{output, width};

/// Longer lines are hard to read.
const COLUMNS_MAX: usize = 100;

/// Lines that fit the terminal, broken between words.
pub(crate) fn lines(text: &str) -> Vec<String> {
    wrapped(text, width::terminal().min(COLUMNS_MAX))
}

/// Prints a text, broken to the terminal's width.
pub(crate) fn print(text: &str) {
    for line in lines(text) {
        output::line(&line);
    }
}

/// Columns of a property's name.
const NAME_COLUMNS: usize = 13;

/// Prints a name and its value, which is broken to the terminal's width beside the name.
pub(crate) fn property(name: &str, value: &str) {
    let columns = width::terminal().min(COLUMNS_MAX) - NAME_COLUMNS;
    for (at, line) in wrapped(value, columns).into_iter().enumerate() {
        let name = if at == 0 { name } else { "" };
        output::line(&format!("{name:<NAME_COLUMNS$}{line}"));
    }
}

/// A reason behind a colon; nothing where there is none.
pub(crate) fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

/// Prints an item of a list behind its mark; further lines begin where its text does.
pub(crate) fn item(mark: &str, text: &str) {
    let indent = mark.chars().count() + 1;
    for (at, line) in wrapped(text, width::terminal().min(COLUMNS_MAX) - indent).into_iter().enumerate() {
        let mark = if at == 0 { mark } else { "" };
        output::line(&format!("{mark:<indent$}{line}"));
    }
}

fn wrapped(text: &str, columns: usize) -> Vec<String> {
    // Paths and names are kept whole, so that they can be copied.
    let options = textwrap::Options::new(columns)
        .word_separator(textwrap::WordSeparator::AsciiSpace)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
        .break_words(false);
    textwrap::wrap(&clean(text), options).into_iter().map(std::borrow::Cow::into_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kept_whole_and_wide_characters_take_two_columns() {
        let text = "a word ".repeat(60);
        let lines = wrapped(text.trim_end(), 40);
        assert!(lines.len() > 1 && lines.iter().all(|line| line.len() <= 40), "{lines:?}");
        assert_eq!(lines.join(" "), text.trim_end());
        assert_eq!(wrapped("世界世界 世界世界", 10), ["世界世界", "世界世界"]);
    }
}
