use super::error::CareError;

/// Names become folder names and are typed by people.
pub(crate) fn check_name(name: &str) -> Result<(), CareError> {
    let fits = (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if fits {
        return Ok(());
    }
    Err(CareError::Invalid(format!(
        "`{}` cannot name a machine: use letters, digits, `-` and `_`, at most 63, a letter or digit first",
        name.escape_debug()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        assert!(["web", "a", "web-1_x", &"x".repeat(63)].iter().all(|name| check_name(name).is_ok()));
        assert!(
            ["", ".", "..", "a/b", "-rf", "a b", "ä", &"x".repeat(64)]
                .iter()
                .all(|name| check_name(name).is_err())
        );
    }
}
