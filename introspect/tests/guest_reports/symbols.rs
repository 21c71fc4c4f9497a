use retrovisor_introspect::{Introspector, Kernel};

use crate::dump::Dump;

/// Every symbol of the kernel, its address and name, in the order of /proc/kallsyms.
pub(crate) fn agree(kernel: &Kernel, dump: &Dump) {
    let told = dump.before.text("/proc/kallsyms");
    let mut told: Vec<(u64, &str)> = told
        .lines()
        .filter(|line| !line.contains('\t'))
        .map(|line| {
            let mut words = line.split(' ');
            (u64::from_str_radix(words.next().unwrap(), 16).unwrap(), words.nth(1).unwrap())
        })
        .collect();
    let mut read: Vec<(u64, &str)> = kernel.symbols_within(0..u64::MAX).collect();
    told.sort_unstable();
    read.sort_unstable();
    assert!(told.len() > 50_000, "{} symbols told", told.len());
    let different = read.iter().zip(&told).find(|(read, told)| read != told);
    assert_eq!((different, read.len()), (None, told.len()));
}

/// Every symbol of every module.
pub(crate) fn of_modules_agree(introspector: &Introspector, dump: &Dump) {
    let text = dump.before.text("/proc/kallsyms");
    let mut told: Vec<(&str, u64, &str)> = text
        .lines()
        .filter_map(|line| {
            let (symbol, module) = line.split_once('\t')?;
            let mut words = symbol.split(' ');
            let address = u64::from_str_radix(words.next().unwrap(), 16).unwrap();
            Some((module.trim_matches(['[', ']']), address, words.nth(1).unwrap()))
        })
        // Code that the kernel made while it ran.
        .filter(|(module, ..)| *module != "bpf" && !module.starts_with("__builtin"))
        .collect();
    let mut read: Vec<(&str, u64, &str)> = introspector.module_symbols().collect();
    told.sort_unstable();
    read.sort_unstable();
    assert!(told.len() > 200, "{} symbols told", told.len());
    let different = read.iter().zip(&told).find(|(read, told)| read != told);
    assert_eq!((different, read.len()), (None, told.len()));
}
