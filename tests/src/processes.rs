use std::path::Path;

use nix::unistd::Pid;

/// The QEMU processes whose command line has a path below a folder.
#[must_use]
pub fn qemus_in(folder: &Path) -> Vec<Pid> {
    let mark = folder.to_str().expect("a printable path").to_owned();
    let is_one = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"qemu-system") && String::from_utf8_lossy(&line).contains(&mark)
    };
    pids().into_iter().filter(is_one).map(Pid::from_raw).collect()
}

/// The ended children of a process that it has not waited for, by name.
#[must_use]
pub fn defunct_children(parent: u32) -> Vec<String> {
    let defunct = pids().into_iter().filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let is_defunct = fields.next() == Some("Z") && fields.next()?.parse() == Ok(parent);
        is_defunct.then(|| name.to_owned())
    });
    defunct.collect()
}

fn pids() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("/proc");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}
