fact! {
    /// A file system mounted somewhere.
    #[derive(Default)]
    pub struct Mount in "fact_mount" {
        /// The mount namespace's number, as `/proc/<pid>/ns/mnt` shows it.
        pub namespace: u64 => bits,
        /// The mount's number.
        pub id: i32 => integer,
        /// The parent mount's number; its own when there is none.
        pub parent_id: i32 => integer,
        /// `254:0`: major and minor number of the device.
        pub device: String => text,
        /// The folder of the file system that is mounted.
        pub root: String => text,
        /// Where it is mounted.
        pub point: String => text,
        /// The type: `ext4`, `tmpfs`.
        pub kind: String => text,
        /// What is mounted: a device, or the name that the mount was given.
        pub source: String => text,
        /// `ro`, `nosuid`, …: the options of this mount, joined by commas, in the order of /proc.
        pub options: String => text,
        /// Whether the file system itself is read-only.
        pub read_only: bool => integer,
    }
    question "mounts": "File systems and where they are mounted"
        titled "Mounts" from "SELECT point, kind, source, device, root, options FROM fact_mount WHERE checkpoint = ?1 \
         ORDER BY namespace, id";
}
