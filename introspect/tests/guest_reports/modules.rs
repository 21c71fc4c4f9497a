use std::collections::BTreeSet;

use retrovisor_introspect::Linux;

use crate::dump::Dump;

/// Every module with its address, size, users and state.
pub(crate) fn agree(linux: &Linux, dump: &Dump) {
    let reported: BTreeSet<String> = dump
        .before
        .text("/proc/modules")
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            format!("{} {} {} {} {}", words[0], words[1], words[2], words[4].to_lowercase(), words[5])
        })
        .collect();
    let read: BTreeSet<String> = linux
        .modules
        .iter()
        .map(|module| {
            let refcount = module.refcount.unwrap();
            format!(
                "{} {} {refcount} {} {:#018x}",
                module.name, module.size_bytes, module.state, module.address
            )
        })
        .collect();
    assert_eq!(read, reported);
    assert!(linux.modules.iter().all(|module| module.views == "list+kset+tree"), "{:?}", linux.modules);
}
