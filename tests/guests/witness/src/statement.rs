use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Result, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Files of the whole system. Those that a kernel does not have are left out.
const SYSTEM: &[&str] = &[
    "version",
    "uptime",
    "stat",
    "loadavg",
    "vmstat",
    "modules",
    "softirqs",
    "self/mountinfo",
    "net/tcp",
    "net/tcp6",
    "net/udp",
    "net/udp6",
    "net/raw",
    "net/raw6",
    "net/unix",
    "sys/kernel/tainted",
    "kallsyms",
    "sys/kernel/pid_max",
];
/// Files of each process, and of each thread.
const PROCESS: &[&str] = &["cmdline", "status"];
const THREAD: &[&str] = &["stat", "status", "stack", "wchan", "schedstat"];
const O_NONBLOCK: i32 = 0o4000;

/// Each thing as `name length` on a line, then its bytes.
pub(crate) fn take() -> Vec<u8> {
    let mut all = Vec::new();
    let processes = numbers(Path::new("/proc"));
    for process in processes {
        for name in PROCESS {
            add_file(&mut all, &process.join(name));
        }
        add_link(&mut all, &process.join("exe"));
        for file in numbers(&process.join("fd")) {
            add_link(&mut all, &file);
            if let Some(number) = file.file_name() {
                add_file(&mut all, &process.join("fdinfo").join(number));
            }
        }
        for thread in numbers(&process.join("task")) {
            for name in THREAD {
                add_file(&mut all, &thread.join(name));
            }
        }
    }
    for name in SYSTEM {
        add_file(&mut all, &Path::new("/proc").join(name));
    }
    add(&mut all, "/dev/kmsg", &kernel_log());
    all
}

/// Writes a statement where the reader of the disk looks for it: length, then bytes.
pub(crate) fn write(file: &str, offset: u64, statement: &[u8]) -> Result<()> {
    let mut file = File::options().write(true).open(file)?;
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(&(statement.len() as u64).to_le_bytes())?;
    file.write_all(statement)?;
    file.sync_all()
}

fn add(all: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    all.extend_from_slice(format!("{name} {}\n", bytes.len()).as_bytes());
    all.extend_from_slice(bytes);
    all.push(b'\n');
}

fn add_file(all: &mut Vec<u8>, path: &Path) {
    // A process may have ended meanwhile.
    if let Ok(bytes) = fs::read(path) {
        add(all, &path.to_string_lossy(), &bytes);
    }
}

fn add_link(all: &mut Vec<u8>, path: &Path) {
    if let Ok(target) = fs::read_link(path) {
        add(all, &path.to_string_lossy(), target.as_os_str().as_bytes());
    }
}

/// The entries of a folder whose names are numbers, ascending.
fn numbers(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path)))
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// One record a read: `level,number,microseconds,flags;text`.
fn kernel_log() -> Vec<u8> {
    let mut log = Vec::new();
    let Ok(mut file) = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open("/dev/kmsg") else {
        return log;
    };
    let mut record = [0; 16_384];
    loop {
        match file.read(&mut record) {
            Ok(length @ 1..) => log.extend_from_slice(&record[..length]),
            // Records were overwritten meanwhile: the next read goes on behind them.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => (),
            Ok(0) | Err(_) => return log,
        }
    }
}
