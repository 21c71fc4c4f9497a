use std::collections::{BTreeMap, BTreeSet};

use retrovisor_introspect::{Linux, fact::OpenFile};

use crate::{dump::Dump, statement::Statement};

/// An open file according to /proc: target of the link, flags, position, inode (since 5.14).
#[derive(Debug, PartialEq)]
struct Reported {
    path: String,
    flags: u64,
    position: i64,
    inode: Option<u64>,
}

/// Set for a descriptor that execve(2) closes; it is not a flag of the file.
const CLOSE_ON_EXEC: u64 = 0o2_000_000;

fn reported(statement: &Statement) -> BTreeMap<(i32, i32), Reported> {
    let links = statement.under("/proc/").filter_map(|(name, path)| {
        let (process, number) = name.split_once("/fd/")?;
        Some(((process.parse().ok()?, number.parse().ok()?), String::from_utf8_lossy(path).into_owned()))
    });
    links
        .filter_map(|((process, number), path): ((i32, i32), String)| {
            let info = statement.status(&format!("/proc/{process}/fdinfo/{number}"));
            let flags = u64::from_str_radix(info.get("flags")?, 8).unwrap() & !CLOSE_ON_EXEC;
            let inode = info.get("ino").map(|inode| inode.parse().unwrap());
            Some(((process, number), Reported { path, flags, position: info["pos"].parse().unwrap(), inode }))
        })
        .collect()
}

/// Every open file of every process and no other; path, flags, position and inode as in the guest's report.
pub(crate) fn agree(linux: &Linux, dump: &Dump) {
    let read: BTreeMap<(i32, i32), &OpenFile> =
        linux.open_files.iter().map(|file| ((file.pid, file.fd), file)).collect();
    assert_eq!(read.len(), linux.open_files.len(), "no file twice");
    let (before, after) = (reported(&dump.before), reported(&dump.after));
    assert!(before.len() > 40, "{} files reported", before.len());
    // A process that ran between the reports may have had other files at the instant of the dump.
    let stood_still: BTreeSet<i32> = before
        .keys()
        .map(|(process, _)| *process)
        .filter(|process| dump.before.switches(*process) == dump.after.switches(*process))
        .collect();
    assert!(stood_still.len() >= 5, "only {stood_still:?} stood still");
    let before_still = before.iter().filter(|((process, _), _)| stood_still.contains(process));
    for (key, reported) in before_still.filter(|(key, reported)| after.get(key) == Some(reported)) {
        let own = read.get(key).unwrap_or_else(|| panic!("{key:?} is missing: {reported:?}"));
        let inode = reported.inode.map(|_| own.inode);
        let own =
            Reported { path: own.path.clone().unwrap(), flags: own.flags, position: own.position, inode };
        assert_eq!(own, *reported, "{key:?}");
    }
    for (key, file) in read.iter().filter(|((process, _), _)| stood_still.contains(process)) {
        assert!(before.contains_key(key) || after.contains_key(key), "invented: {file:?}");
    }
    let kinds = ["file", "directory", "socket", "pipe", "character device"];
    assert!(kinds.iter().all(|kind| linux.open_files.iter().any(|file| file.kind == *kind)));
    assert!(
        linux.open_files.iter().any(|file| file.path.as_deref() == Some("/data/scene/removed (deleted)"))
    );
}
