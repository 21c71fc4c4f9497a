fact! {
    /// A file that a process holds open.
    #[derive(Default)]
    pub struct OpenFile in "fact_open_file" {
        /// The process, or a thread that has a descriptor table of its own.
        pub pid: i32 => integer,
        /// Its name.
        pub comm: String => text,
        /// The descriptor.
        pub fd: i32 => integer,
        /// `file`, `directory`, `socket`, `pipe`, `character device`, `block device`, `link` or `anonymous`.
        pub kind: &'static str => text,
        /// The path as /proc shows it: `/data/journal`, `socket:[4711]`; one that was removed ends in ` (deleted)`.
        pub path: Option<String> => text,
        /// The inode's number in its file system.
        pub inode: u64 => bits,
        /// The type of the file system: `ext4`, `tmpfs`, `sockfs`.
        pub file_system: String => text,
        /// `r`, `w`, `rw` or `-`.
        pub access: &'static str => text,
        /// `f_flags`: the flags of open(2).
        pub flags: u64 => bits,
        /// Offset of the next read or write, in bytes.
        pub position: i64 => integer volatile,
    }
    question "files": "Files that processes hold open"
        titled "Open files" from "SELECT pid, comm, fd, access, kind, path FROM fact_open_file WHERE checkpoint = ?1 ORDER BY pid, fd";
}
