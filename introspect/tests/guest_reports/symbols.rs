use retrovisor_introspect::{Introspector, Kernel};

use crate::dump::Dump;

/// Every symbol of the kernel, its address and name, in the order of /proc/kallsyms.
pub(crate) fn agree(kernel: &Kernel, dump: &Dump) {
    let reported = dump.before.text("/proc/kallsyms");
    let mut reported: Vec<(u64, &str)> = reported
        .lines()
        .filter(|line| !line.contains('\t'))
        .map(|line| {
            let mut words = line.split(' ');
            (u64::from_str_radix(words.next().unwrap(), 16).unwrap(), words.nth(1).unwrap())
        })
        .collect();
    let mut read: Vec<(u64, &str)> = kernel.symbols_within(0..u64::MAX).collect();
    reported.sort_unstable();
    read.sort_unstable();
    assert!(reported.len() > 50_000, "{} symbols reported", reported.len());
    let different = read.iter().zip(&reported).find(|(read, reported)| read != reported);
    assert_eq!((different, read.len()), (None, reported.len()));
}

/// Every symbol of every module.
pub(crate) fn of_modules_agree(introspector: &Introspector, dump: &Dump) {
    let text = dump.before.text("/proc/kallsyms");
    let mut reported: Vec<(&str, u64, &str)> = text
        .lines()
        .filter_map(|line| {
            let (symbol, module) = line.split_once('\t')?;
            let mut words = symbol.split(' ');
            let address = u64::from_str_radix(words.next().unwrap(), 16).unwrap();
            Some((module.trim_matches(['[', ']']), address, words.nth(1).unwrap()))
        })
        // Code that the kernel generated at run time.
        .filter(|(module, ..)| *module != "bpf" && !module.starts_with("__builtin"))
        .collect();
    let mut read: Vec<(&str, u64, &str)> = introspector.module_symbols().collect();
    reported.sort_unstable();
    read.sort_unstable();
    assert!(reported.len() > 200, "{} symbols reported", reported.len());
    let different = read.iter().zip(&reported).find(|(read, reported)| read != reported);
    assert_eq!((different, read.len()), (None, reported.len()));
}
