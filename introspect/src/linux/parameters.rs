use crate::{fact::Parameter, printable::printable, probe::Probe};

/// x86's `COMMAND_LINE_SIZE` is 2,048; with a boot configuration appended a command line may be longer.
const LINE_BYTES_MAX: usize = 8192;
const PARAMETERS_MAX: usize = 1024;

/// Reads the parameters on the kernel's command line, the contents of /proc/cmdline.
pub(crate) fn read(probe: &Probe) -> Vec<Parameter> {
    let line = probe
        .word("saved_command_line")
        .filter(|line| *line != 0)
        .and_then(|line| probe.reader.string(line, LINE_BYTES_MAX));
    line.map(|line| parse(&line)).unwrap_or_default()
}

/// Splits a command line as the kernel does: at white space outside double quotes, names from values at the first `=`.
fn parse(line: &str) -> Vec<Parameter> {
    let mut quoted = false;
    let words = line.split(|letter: char| {
        quoted ^= letter == '"';
        !quoted && letter.is_ascii_whitespace()
    });
    words
        .filter(|word| !word.is_empty())
        .take(PARAMETERS_MAX)
        .zip(0..)
        .map(|(word, position)| {
            let text = |part: &str| printable(part.trim_matches('"').as_bytes());
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(text(value))),
                None => (word, None),
            };
            Parameter { position, name: text(name), value }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_may_be_quoted_and_contain_spaces_and_equal_signs() {
        let parsed = parse(
            "BOOT_IMAGE=/vmlinuz root=/dev/vda quiet  dyndbg=\"file a.c +p; line=3 +t\" \"x=a b\" console=\n",
        );
        let pairs: Vec<_> = parsed.iter().map(|one| (one.name.as_str(), one.value.as_deref())).collect();
        assert_eq!(
            pairs,
            [
                ("BOOT_IMAGE", Some("/vmlinuz")),
                ("root", Some("/dev/vda")),
                ("quiet", None),
                ("dyndbg", Some("file a.c +p; line=3 +t")),
                ("x", Some("a b")),
                ("console", Some("")),
            ]
        );
        assert_eq!(parsed.last().map(|last| last.position), Some(5));
    }

    proptest! {
        #[test]
        fn no_line_is_refused_and_the_number_of_parameters_is_bounded(line in "\\PC{0,200}|[a= \"]{0,5000}") {
            let parsed = parse(&line);
            prop_assert!(parsed.len() <= PARAMETERS_MAX);
            prop_assert!(parsed.iter().zip(0..).all(|(one, at)| one.position == at));
        }
    }
}
