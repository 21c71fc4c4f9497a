/// The boot of a checkpoint, as far as its facts identify it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Boot {
    /// The name from introspection; missing while the kernel boots.
    pub(crate) name: Option<String>,
    pub(crate) uptime_ns: Option<u64>,
    /// The addresses at which the kernel was loaded, which KASLR changes with each boot.
    pub(crate) placement: Option<(String, String)>,
}

impl Boot {
    /// Whether the guest booted again after an earlier checkpoint of its line.
    pub(crate) fn is_another_than(&self, earlier: &Self) -> bool {
        let went_back = self.uptime_ns.zip(earlier.uptime_ns).is_some_and(|(now, then)| now < then);
        let renamed = self.name.as_ref().zip(earlier.name.as_ref()).is_some_and(|(now, then)| now != then);
        let moved =
            self.placement.as_ref().zip(earlier.placement.as_ref()).is_some_and(|(now, then)| now != then);
        went_back || renamed || moved
    }

    /// Combines a later checkpoint of a boot with what was known before it. A checkpoint of the firmware, between two
    /// boots, has no values of its own.
    pub(crate) fn after(self, earlier: Self) -> Self {
        Self {
            name: self.name.or(earlier.name),
            uptime_ns: self.uptime_ns.or(earlier.uptime_ns),
            placement: self.placement.or(earlier.placement),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_another_by_its_name_its_clock_or_its_place() {
        let boot = |name: Option<&str>, uptime_ns, slide: Option<&str>| Boot {
            name: name.map(str::to_owned),
            uptime_ns,
            placement: slide.map(|slide| (slide.to_owned(), "0x0".to_owned())),
        };
        let first = boot(Some("a"), Some(20), Some("0x1"));
        let firmware = boot(None, None, None);
        assert!(!firmware.is_another_than(&first));
        let known = firmware.after(first.clone());
        assert_eq!(known, first);
        for (next, another) in [
            (boot(None, Some(0), Some("0x1")), true),
            (boot(None, Some(30), Some("0x2")), true),
            (boot(Some("b"), Some(30), Some("0x1")), true),
            (boot(Some("a"), Some(20), Some("0x1")), false),
            (boot(None, None, Some("0x1")), false),
        ] {
            assert_eq!(next.is_another_than(&known), another, "{next:?}");
        }
    }
}
