/// Guest bytes as text that is safe to print: control characters other than newline and tab as `\x1b`, invalid
/// UTF-8 as U+FFFD.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for character in String::from_utf8_lossy(bytes).chars() {
        match character {
            '\n' | '\t' => text.push(character),
            _ if character.is_control() => {
                text.extend(
                    std::ascii::escape_default(u8::try_from(character).unwrap_or(b'?')).map(char::from),
                );
            }
            _ => text.push(character),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(printable(b"a\x1b[2J\tb\nc\xff"), "a\\x1b[2J\tb\nc\u{fffd}");
        assert_eq!(printable("caf\u{e9} \u{85}".as_bytes()), "caf\u{e9} \\x85");
    }
}
