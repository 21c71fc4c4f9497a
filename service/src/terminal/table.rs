//! Tables that fit the terminal.

use comfy_table::{
    Cell as Shown, CellAlignment, ColumnConstraint, ContentArrangement, Row, Table as Layout, Width, presets,
};
use retrovisor_proto::v1::{Cell, Table, cell::Value};
use unicode_width::UnicodeWidthStr as _;

use super::clean::clean;
use super::{output, width};

/// A text column is not made narrower than this.
const TEXT_COLUMNS_MIN: usize = 8;
/// Blanks between two columns.
const GAP: u16 = 2;

/// Prints rows under headings. Numbers are on the right; text is cut where the line would be too long.
pub(crate) fn print(headings: &[&str], rows: &[Vec<String>]) {
    for line in lines(headings, rows, width::terminal()) {
        output::line(&line);
    }
}

/// Prints a table of facts.
pub(crate) fn print_facts(table: &Table) {
    if !table.title.is_empty() {
        output::styled_line(output::BOLD, &table.title);
    }
    let headings: Vec<&str> = table.columns.iter().map(String::as_str).collect();
    let rows: Vec<Vec<String>> = table.rows.iter().map(|row| row.cells.iter().map(cell).collect()).collect();
    print(&headings, &rows);
    if table.truncated {
        output::line(&format!("(cut after {} rows; `retrovisor query` shows others)", table.rows.len()));
    }
}

/// A cell in words.
pub(crate) fn cell(cell: &Cell) -> String {
    match &cell.value {
        None => "-".to_owned(),
        Some(Value::Integer(number)) => number.to_string(),
        Some(Value::Real(number)) if number.fract() == 0.0 && number.abs() < 1e15 => format!("{number:.0}"),
        Some(Value::Real(number)) => format!("{number:.3}"),
        Some(Value::Text(text)) => text.clone(),
    }
}

fn lines(headings: &[&str], rows: &[Vec<String>], total_width: usize) -> Vec<String> {
    let mut layout = Layout::new();
    layout.load_preset(presets::NOTHING).set_truncation_indicator("…");
    layout.set_content_arrangement(ContentArrangement::Dynamic);
    layout.set_width(u16::try_from(total_width).unwrap_or(u16::MAX));
    layout.set_header(row(headings.iter().copied()));
    layout.add_rows(rows.iter().map(|cells| row(cells.iter().map(String::as_str))));
    let last = headings.len().saturating_sub(1);
    for (at, column) in layout.column_iter_mut().enumerate() {
        let cells = || rows.iter().map(|row| row.get(at).map_or("", String::as_str));
        column.set_padding((0, if at == last { 0 } else { GAP }));
        if !rows.is_empty() && cells().all(is_number) {
            column.set_cell_alignment(CellAlignment::Right);
            column.set_constraint(ColumnConstraint::ContentWidth);
        } else {
            let heading = headings.get(at).copied().unwrap_or_default();
            let widest = cells().chain([heading]).map(|text| clean(text).width()).max().unwrap_or(0);
            let columns_min = u16::try_from(widest.min(TEXT_COLUMNS_MIN)).unwrap_or(u16::MAX);
            let gap = if at == last { 0 } else { GAP };
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(columns_min + gap)));
        }
    }
    layout.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// One line, however long its cells are.
fn row<'a>(cells: impl Iterator<Item = &'a str>) -> Row {
    let mut row = Row::from(cells.map(|text| Shown::new(clean(text))).collect::<Vec<_>>());
    row.max_height(1);
    row
}

/// `12`, `-3.5`, `1.2 ms`, and `-` for what is not known.
fn is_number(cell: &str) -> bool {
    cell == "-"
        || cell.parse::<f64>().is_ok()
        || cell.split_once(' ').is_some_and(|(number, _)| number.parse::<f64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[[&str; 2]]) -> Vec<Vec<String>> {
        rows.iter().map(|row| row.map(str::to_owned).to_vec()).collect()
    }

    #[test]
    fn long_text_is_cut_and_numbers_are_on_the_right() {
        let lines = lines(&["name", "n"], &rows(&[[&"x".repeat(60), "5"], ["y", "123"]]), 40);
        assert!(lines.iter().all(|line| line.width() <= 40), "{lines:?}");
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[1].contains('…') && lines[1].ends_with("    5"), "{lines:?}");
        assert!(lines[2].ends_with("  123"), "{lines:?}");
    }

    #[test]
    fn wide_characters_keep_the_columns_in_line() {
        let lines = lines(&["name", "n"], &rows(&[["世界", "5"], ["abcd", "123"]]), 40);
        assert_eq!(lines, ["name    n", "世界    5", "abcd  123"]);
    }

    #[test]
    fn no_cell_breaks_the_line_or_drives_the_terminal() {
        let lines = lines(&["name", "n"], &rows(&[["a\nb\x1b[2Jc", "1"]]), 40);
        assert_eq!(lines, ["name      n", "a\u{fffd}b\u{fffd}[2Jc  1"]);
    }
}
