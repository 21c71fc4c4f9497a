use std::collections::BTreeMap;

use crate::{Error, Plan, Target, bit_flip::BitFlip, syscall_redirect::SyscallRedirect};

/// A kind of fault. One file each; [`all`] lists them.
pub trait Fault: Sync {
    /// Its name on the command line and in the API: `bit-flip`.
    fn name(&self) -> &'static str;

    /// Its effect, in one line.
    fn doc(&self) -> &'static str;

    /// The parameters it takes.
    fn parameters(&self) -> &'static [Parameter];

    /// What a detector should find in the checkpoints after it.
    fn expected(&self) -> &'static str;

    /// Determines the bytes to write. Reads only the checkpoint; the guest may run meanwhile.
    fn plan(&self, target: &Target, arguments: &Arguments) -> Result<Plan, Error>;
}

/// A parameter of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name, with the unit last: `offset_bytes`.
    pub name: &'static str,
    /// The unit of its value; empty for names.
    pub unit: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// The default value; `None` for a parameter that is optional or required, as `doc` says.
    pub default: Option<&'static str>,
}

/// The registry: every kind of fault.
#[must_use]
pub fn all() -> &'static [&'static dyn Fault] {
    &[&SyscallRedirect, &BitFlip]
}

/// The fault of a name.
pub fn find(name: &str) -> Result<&'static dyn Fault, Error> {
    all()
        .iter()
        .find(|fault| fault.name() == name)
        .copied()
        .ok_or_else(|| Error::NoSuchFault(name.escape_debug().to_string()))
}

/// The values of a fault's parameters, checked against its list of parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments(BTreeMap<String, String>);

impl Arguments {
    /// Fails for a parameter that the fault does not take.
    pub fn new(fault: &dyn Fault, given: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let mut values: BTreeMap<String, String> = fault
            .parameters()
            .iter()
            .filter_map(|parameter| Some((parameter.name.to_owned(), parameter.default?.to_owned())))
            .collect();
        for (name, value) in given {
            if fault.parameters().iter().all(|parameter| parameter.name != name) {
                let known: Vec<_> = fault.parameters().iter().map(|parameter| parameter.name).collect();
                return Err(Error::Parameter {
                    name: name.escape_debug().to_string(),
                    problem: format!("{} takes: {}", fault.name(), known.join(", ")),
                });
            }
            values.insert(name, value);
        }
        Ok(Self(values))
    }

    /// The value of a parameter, if there is one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The value of a required parameter.
    pub fn text(&self, name: &str) -> Result<&str, Error> {
        self.get(name)
            .ok_or_else(|| Error::Parameter { name: name.to_owned(), problem: "is missing".to_owned() })
    }

    /// The value of a parameter as a number, decimal or hexadecimal behind `0x`.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Error> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        number.map(Some).map_err(|_| Error::Parameter {
            name: name.to_owned(),
            problem: format!("`{}` is not a number such as 4096 or 0x1000", text.escape_debug()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_everything_is_documented() {
        let names: BTreeSet<_> = all().iter().map(|fault| fault.name()).collect();
        assert_eq!(names.len(), all().len());
        for fault in all() {
            assert!(!fault.doc().is_empty() && !fault.expected().is_empty(), "{}", fault.name());
            assert!(fault.parameters().iter().all(|parameter| !parameter.doc.is_empty()), "{}", fault.name());
        }
        assert!(matches!(find("nothing"), Err(Error::NoSuchFault(_))));
    }

    #[test]
    fn arguments_are_checked() {
        let fault = find("bit-flip").unwrap();
        let given = |name: &str, value: &str| Arguments::new(fault, [(name.to_owned(), value.to_owned())]);
        assert!(matches!(given("bits", "1"), Err(Error::Parameter { .. })));
        let arguments = given("gpa", "0x1f").unwrap();
        assert_eq!(arguments.number("gpa").unwrap(), Some(0x1f));
        assert_eq!(arguments.number("bit").unwrap(), Some(0), "the default");
        assert_eq!(arguments.number("symbol").unwrap(), None);
        assert!(given("gpa", "0xzz").unwrap().number("gpa").is_err());
        assert!(given("gpa", "-1").unwrap().number("gpa").is_err());
    }
}
