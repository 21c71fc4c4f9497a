//! Groups texts that are alike apart from names and numbers, so that each group is shown once with a count.

/// A text without its variable parts: words with a digit, and what follows the first two words up to `:`.
fn pattern(text: &str) -> String {
    let (subject, rest) = text.split_once(": ").unwrap_or((text, ""));
    let kind = subject.split(' ').take(2);
    let words =
        kind.chain(rest.split(' ')).filter(|word| !word.contains(|letter: char| letter.is_ascii_digit()));
    words.map(|word| if word.contains('_') { "_" } else { word }).collect::<Vec<_>>().join(" ")
}

/// Groups items with similar texts, in the order of the first item of each group.
pub(super) fn group<T>(items: &[T], text: impl Fn(&T) -> &str) -> Vec<Vec<&T>> {
    let mut groups: Vec<(String, Vec<&T>)> = Vec::new();
    for item in items {
        let pattern = pattern(text(item));
        match groups.iter_mut().find(|(other, _)| *other == pattern) {
            Some((_, group)) => group.push(item),
            None => groups.push((pattern, vec![item])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Whether two lists of texts are alike, element by element.
pub(super) fn texts(one: &[String], other: &[String]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| pattern(one) == pattern(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_differ_in_objects_and_addresses_are_alike() {
        let texts: Vec<String> = (0..300)
            .map(|n| {
                format!("syscall redirected call{n}: 0xffff{n:04} where 0xfff{n:04} __x64_sys_c{n} must be (entry {n})")
            })
            .chain(["hidden module rootkit: kset where list must be".to_owned()])
            .collect();
        let groups = group(&texts, |text| text.as_str());
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [300, 1]);
        assert!(super::texts(&texts[..2], &texts[2..4]) && !super::texts(&texts[..1], &texts[300..]));
    }

    #[test]
    fn tasks_of_different_names_are_not_alike() {
        let texts = [
            "task `a` (pid 1) used 2 processors".to_owned(),
            "task `b` (pid 2) used 2 processors".to_owned(),
        ];
        assert_eq!(group(&texts, |text| text.as_str()).len(), 2);
    }
}
