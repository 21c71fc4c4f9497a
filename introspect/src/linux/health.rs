use crate::{fact::Counter, probe::Probe};

/// The state of the kernel: running, panicked, number of oopses.
#[derive(Default)]
pub(crate) struct Health {
    /// `booting`, `running`, `halt`, …
    pub(crate) state: Option<String>,
    /// The CPU that panicked.
    pub(crate) panic_cpu: Option<u32>,
    /// Number of kernel oopses since boot.
    pub(crate) oopses: Option<u64>,
}

impl Health {
    pub(crate) fn read(probe: &Probe) -> Self {
        let names = probe.types.enum_with("SYSTEM_RUNNING");
        let state = probe.half("system_state").map(i64::from);
        let name = names.into_iter().find(|(_, value)| Some(*value) == state).map(|(name, _)| name);
        let panic_cpu = probe.half("panic_cpu").map(u32::cast_signed).and_then(|cpu| u32::try_from(cpu).ok());
        let state = name.map(|name| name.trim_start_matches("SYSTEM_").to_lowercase());
        Self {
            state: if panic_cpu.is_some() { Some("panic".to_owned()) } else { state },
            panic_cpu,
            oopses: probe.half("oops_count").or_else(|| probe.half("die_counter")).map(u64::from),
        }
    }
}

/// The letters that /proc and oops messages use for the bits of a tainted kernel: `OE`; empty for none.
pub(crate) fn taint_letters(bits: u64) -> String {
    const LETTERS: &[u8] = b"PFSRMBUDAWCIOELKXTNJ";
    let letters = LETTERS.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1);
    letters.map(|(_, letter)| char::from(*letter)).collect()
}

/// Counts of poisoned pages and of machine checks, where the kernel has them.
pub(crate) fn counters(probe: &Probe) -> Vec<Counter> {
    let each = |symbol: &str| {
        probe.symbol(symbol)?;
        let each = probe.each_cpu(symbol).filter_map(|(_, at)| probe.reader.u32(at));
        Some(each.fold(0, |sum: u64, value| sum.saturating_add(value.into())))
    };
    let all = [
        ("poisoned_pages", probe.word("num_poisoned_pages")),
        ("machine_checks", each("mce_exception_count")),
        ("machine_check_polls", each("mce_poll_count")),
        ("machine_check_banks", each("mce_num_banks")),
        ("oom_victims", probe.half("oom_victims").map(u64::from)),
    ];
    let counter = |(name, value): (&str, Option<u64>)| {
        Some(Counter { name: name.to_owned(), value: value?.cast_signed() })
    };
    all.into_iter().filter_map(counter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_the_letters_of_an_oops() {
        assert_eq!(taint_letters(0), "");
        assert_eq!(taint_letters(1 << 12 | 1 << 13), "OE");
        assert_eq!(taint_letters(1 << 7 | 1 << 9), "DW");
    }
}
