//! Tables that fit the terminal.

use std::io::Write as _;

use retrovisor_proto::v1::{Cell, Table, cell::Value};

use super::style;

/// Columns of the terminal, or 100 when there is none.
pub(crate) fn terminal_width() -> usize {
    std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok())
        .or_else(|| terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)))
        .unwrap_or(100)
        .max(40)
}

/// Prints rows under headings; numbers to the right; the widest text columns give way when the line is too long.
pub(crate) fn print(headings: &[&str], rows: &[Vec<String>]) {
    for line in lines(headings, rows, terminal_width()) {
        // A closed pipe (`| head`) ends the output, not the program.
        if writeln!(std::io::stdout(), "{}", line.trim_end()).is_err() {
            return;
        }
    }
}

/// Prints a table of facts.
pub(crate) fn print_facts(table: &Table) {
    if !table.title.is_empty() {
        println!("{}", style::bold(&table.title));
    }
    let headings: Vec<&str> = table.columns.iter().map(String::as_str).collect();
    let rows: Vec<Vec<String>> = table.rows.iter().map(|row| row.cells.iter().map(cell).collect()).collect();
    print(&headings, &rows);
}

/// A cell in words.
pub(crate) fn cell(cell: &Cell) -> String {
    match &cell.value {
        None => "-".to_owned(),
        Some(Value::Integer(number)) => number.to_string(),
        Some(Value::Real(number)) if number.fract() == 0.0 && number.abs() < 1e15 => format!("{number:.0}"),
        Some(Value::Real(number)) => format!("{number:.3}"),
        Some(Value::Text(text)) => style::printable(text),
    }
}

fn lines(headings: &[&str], rows: &[Vec<String>], width: usize) -> Vec<String> {
    let count = |text: &str| text.chars().count();
    let mut widths: Vec<usize> = headings.iter().map(|heading| count(heading)).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(count(cell));
        }
    }
    let numeric: Vec<bool> = (0..headings.len())
        .map(|at| !rows.is_empty() && rows.iter().all(|row| row.get(at).is_some_and(|cell| is_number(cell))))
        .collect();
    while widths.iter().sum::<usize>() + 2 * widths.len() > width {
        let widest = (0..widths.len()).filter(|at| !numeric[*at]).max_by_key(|at| widths[*at]);
        match widest {
            Some(at) if widths[at] > 8 => widths[at] -= 1,
            _ => break,
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| -> String {
        let mut line = String::new();
        for ((cell, width), numeric) in cells.zip(&widths).zip(&numeric) {
            let shown: String = if count(cell) > *width {
                cell.chars().take(width.saturating_sub(1)).chain(['…']).collect()
            } else {
                cell.to_owned()
            };
            let pad = " ".repeat(width - count(&shown).min(*width));
            let (left, right) = if *numeric { (pad, shown) } else { (shown, pad) };
            line.extend([left.as_str(), right.as_str(), "  "]);
        }
        line
    };
    let mut all = vec![line(&mut headings.iter().copied())];
    all.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    all
}

fn is_number(cell: &str) -> bool {
    cell == "-"
        || cell.parse::<f64>().is_ok()
        || cell.split_once(' ').is_some_and(|(n, _)| n.parse::<f64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_gives_way_and_numbers_stand_right() {
        let rows = vec![vec!["x".repeat(60), "5".to_owned()], vec!["y".to_owned(), "123".to_owned()]];
        let lines = lines(&["name", "n"], &rows, 40);
        assert!(lines.iter().all(|line| line.chars().count() <= 40), "{lines:?}");
        assert!(lines[1].contains('…') && lines[1].trim_end().ends_with("  5"));
        assert!(lines[2].trim_end().ends_with("123"));
    }
}
