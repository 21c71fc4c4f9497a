/// Longest name of a machine or a hub, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Why a text cannot name a machine or a hub.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` cannot name a {what}: use 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`, not starting with `-` or `.`"
)]
pub struct NameError {
    what: &'static str,
    /// Escaped, since it may contain any character.
    name: String,
}

/// Checks the name of a machine or a hub (`what`): names become folder names and arguments, and users type them.
///
/// The store, the manager and the command line all use this rule.
pub fn check_name(what: &'static str, name: &str) -> Result<(), NameError> {
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !name.starts_with(['-', '.']);
    if fits { Ok(()) } else { Err(NameError { what, name: name.escape_debug().to_string() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_leave_its_folder_or_pass_for_an_option_is_refused() {
        for name in ["web", "a", "web-1_x", "web.2", &"x".repeat(NAME_BYTES_MAX)] {
            assert_eq!(check_name("machine", name), Ok(()), "{name}");
        }
        for name in ["", ".", "..", ".web", "a/b", "-rf", "a b", "ä", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert!(check_name("machine", name).is_err(), "{name}");
        }
        let error = check_name("hub", "a\x1b").unwrap_err().to_string();
        assert!(error.starts_with(r"`a\u{1b}` cannot name a hub"), "{error}");
    }
}
