//! Columns of the terminal, and text that fits them.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Where there is no terminal.
const COLUMNS_DEFAULT: usize = 100;
/// Narrower terminals are treated as this wide.
const COLUMNS_MIN: usize = 40;

/// Columns of the terminal.
pub(crate) fn terminal() -> usize {
    std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok())
        .or_else(|| terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)))
        .unwrap_or(COLUMNS_DEFAULT)
        .max(COLUMNS_MIN)
}

/// Cuts `text` to a number of columns, with `…` at its end.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut free = columns.saturating_sub(1);
    let fits = |c: &char| {
        let width = c.width().unwrap_or(0);
        let fits = width <= free;
        free = free.saturating_sub(width);
        fits
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_characters_take_two_columns() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("世界世界", 6), "世界…");
        assert_eq!(cut("世界世界", 4), "世…");
    }
}
