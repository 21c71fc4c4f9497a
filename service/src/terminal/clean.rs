//! Text without terminal control: a guest or an imported archive chose many of the words that are shown.

use std::borrow::Cow;
use std::fmt::Write as _;

/// What is shown in place of a character that could drive the terminal.
const REPLACEMENT: &str = "\u{fffd}";

/// `text` on one line, without control characters and without characters that change the direction of writing.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    if text.contains(is_unsafe) {
        Cow::Owned(text.replace(is_unsafe, REPLACEMENT))
    } else {
        Cow::Borrowed(text)
    }
}

/// JSON that has the same meaning and no control characters but line feeds. They can only be inside of strings, where
/// they are escaped.
pub(crate) fn clean_json(json: &str) -> String {
    let mut clean = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && is_unsafe(c) {
            // All of them are below U+10000: one escape each.
            // Writing to a string does not fail.
            let _ = write!(clean, "\\u{:04x}", u32::from(c));
        } else {
            clean.push(c);
        }
    }
    clean
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_and_line_breaks_are_replaced() {
        assert_eq!(clean("a\x1b[2Jb\n\u{9b}c\u{202e}d"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\u{fffd}d");
        assert!(matches!(clean("Grüße, 世界"), Cow::Borrowed("Grüße, 世界")));
    }

    #[test]
    fn json_keeps_its_meaning() {
        let value = serde_json::json!({ "label": "a\x1b[2J\u{9b}\n" });
        let text = clean_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!text.contains(['\x1b', '\u{9b}']) && text.contains("\\u009b"), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
