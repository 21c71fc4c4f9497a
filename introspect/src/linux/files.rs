use super::paths::Paths;
use crate::{
    btf::Field,
    fact::{OpenFile, Task},
    hash::IntegerSet,
    probe::Probe,
};

/// The open files of tasks.
#[derive(Default)]
pub(crate) struct Files {
    pub(crate) all: Vec<OpenFile>,
    /// Address of each open `struct sock`, with the index in `all` of a file for it.
    pub(crate) sockets: Vec<(u64, usize)>,
}

/// Open files of one process (the default limit of Linux is 1 Mi), and of all.
const TABLE_MAX: u64 = 1 << 20;
const FILES_MAX: usize = 1 << 17;
/// Pointers read at once.
const CHUNK: usize = 64;

struct Fields {
    files: Field,
    table: Field,
    count: Field,
    pointers: Field,
    inode: Field,
    entry: Field,
    flags: Field,
    position: Field,
    inode_number: Field,
    inode_mode: Field,
    /// An inode and its socket in a `socket_alloc`, and the socket's `sock`.
    socket: Option<(Field, Field, Field)>,
}

impl Fields {
    fn of(probe: &Probe) -> Option<Self> {
        let file = |path: &str| probe.field("file", path);
        let socket = || {
            let alloc = |path: &str| probe.field("socket_alloc", path);
            Some((alloc("vfs_inode")?, alloc("socket")?, probe.field("socket", "sk")?))
        };
        Some(Self {
            files: probe.field("task_struct", "files")?,
            table: probe.field("files_struct", "fdt")?,
            count: probe.field("fdtable", "max_fds")?,
            pointers: probe.field("fdtable", "fd")?,
            inode: file("f_inode")?,
            entry: file("f_path.dentry").or_else(|| file("__f_path.dentry"))?,
            flags: file("f_flags")?,
            position: file("f_pos")?,
            inode_number: probe.field("inode", "i_ino")?,
            inode_mode: probe.field("inode", "i_mode")?,
            socket: socket(),
        })
    }
}

impl Files {
    /// Reads the open files of every process, and of those threads that have a descriptor table of their own.
    pub(crate) fn read(probe: &Probe, paths: &Paths, tasks: &[Task]) -> Option<Self> {
        let fields = Fields::of(probe)?;
        let mut found = Self::default();
        let mut tables: IntegerSet<u64> = IntegerSet::default();
        let mut process = 0;
        for task in tasks {
            if task.tgid != process {
                process = task.tgid;
                tables.clear();
            }
            let Some(table) = probe.reader.pointer(task.address, fields.files).filter(|table| *table != 0)
            else {
                continue;
            };
            if tables.insert(table) && found.read_table(probe, &fields, paths, task, table).is_none() {
                probe.mark_torn();
            }
        }
        Some(found)
    }

    fn read_table(
        &mut self,
        probe: &Probe,
        fields: &Fields,
        paths: &Paths,
        task: &Task,
        table: u64,
    ) -> Option<()> {
        let reader = probe.reader;
        let table = reader.pointer(table, fields.table)?;
        let count = reader.number(table, fields.count)?.min(TABLE_MAX);
        let pointers = reader.pointer(table, fields.pointers)?;
        let mut chunk = [0; CHUNK * 8];
        for first in (0..count).step_by(CHUNK) {
            let length = usize::try_from(count - first).ok()?.min(CHUNK) * 8;
            reader.read(pointers.checked_add(first * 8)?, &mut chunk[..length])?;
            for (number, file) in (first..).zip(chunk[..length].as_chunks::<8>().0) {
                let file = u64::from_le_bytes(*file);
                if file == 0 {
                    continue;
                }
                if self.all.len() >= FILES_MAX {
                    return None;
                }
                match read_file(probe, fields, paths, task, number, file) {
                    Some((open, socket)) => {
                        self.sockets.extend(socket.map(|socket| (socket, self.all.len())));
                        self.all.push(open);
                    }
                    None => probe.mark_torn(),
                }
            }
        }
        Some(())
    }
}

fn read_file(
    probe: &Probe,
    fields: &Fields,
    paths: &Paths,
    task: &Task,
    number: u64,
    file: u64,
) -> Option<(OpenFile, Option<u64>)> {
    let reader = probe.reader;
    let inode = reader.pointer(file, fields.inode)?;
    let flags = reader.number(file, fields.flags)?;
    let inode_number = reader.number(inode, fields.inode_number)?;
    let system = paths.file_system(probe, inode)?;
    let path = match system.as_str() {
        "sockfs" => Some(format!("socket:[{inode_number}]")),
        "pipefs" => Some(format!("pipe:[{inode_number}]")),
        "anon_inodefs" => {
            let name = paths.name(probe, reader.pointer(file, fields.entry)?);
            name.map(|name| format!("anon_inode:{name}"))
        }
        _ => paths.of_file(probe, file).map(|path| path.to_string()),
    };
    let socket = (system == "sockfs").then(|| {
        let (own, socket, sock) = fields.socket?;
        let socket = inode.wrapping_sub(own.offset_bytes).wrapping_add(socket.offset_bytes);
        reader.pointer(socket, sock).filter(|sock| *sock != 0)
    });
    let open = OpenFile {
        pid: task.pid,
        comm: task.comm.clone(),
        fd: i32::try_from(number).ok()?,
        kind: kind(reader.number(inode, fields.inode_mode)?),
        path,
        inode: inode_number,
        file_system: system,
        access: access(flags),
        flags,
        position: reader.number(file, fields.position)?.cast_signed(),
    };
    Some((open, socket.flatten()))
}

/// The kind of file in an inode's mode.
fn kind(mode: u64) -> &'static str {
    match mode & 0o170_000 {
        0o010_000 => "pipe",
        0o020_000 => "character device",
        0o040_000 => "directory",
        0o060_000 => "block device",
        0o100_000 => "file",
        0o120_000 => "link",
        0o140_000 => "socket",
        _ => "anonymous",
    }
}

/// The access mode in a file's flags; a file opened with `O_PATH` has none.
fn access(flags: u64) -> &'static str {
    const PLACE: u64 = 0o10_000_000;
    match flags & 3 {
        _ if flags & PLACE != 0 => "-",
        0 => "r",
        1 => "w",
        2 => "rw",
        _ => "-",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_and_flags_have_names() {
        assert_eq!(
            [0o100_644, 0o040_755, 0o140_777, 0o600].map(kind),
            ["file", "directory", "socket", "anonymous"]
        );
        assert_eq!([0, 0o2001, 0o100_002, 3, 0o10_000_000].map(access), ["r", "w", "rw", "-", "-"]);
    }
}
