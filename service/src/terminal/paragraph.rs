//! Sentences that fit the terminal.

use super::table::terminal_width;

/// Lines that fit the terminal, broken between words.
pub(crate) fn lines(text: &str) -> Vec<String> {
    let width = terminal_width().min(100);
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().filter(|line| line.chars().count() + 1 + word.chars().count() <= width);
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => line.extend([" ", word]),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Prints a text, broken to the terminal's width.
pub(crate) fn print(text: &str) {
    for line in lines(text) {
        println!("{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kept_whole() {
        let text = "a word ".repeat(60);
        let lines = lines(text.trim_end());
        assert!(lines.len() > 1 && lines.iter().all(|line| line.chars().count() <= 100));
        assert_eq!(lines.join(" "), text.trim_end());
    }
}
