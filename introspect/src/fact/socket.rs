fact! {
    /// One end of a connection, or what waits for some.
    #[derive(Default)]
    pub struct Socket in "fact_socket" {
        /// `tcp`, `tcp6`, `udp`, `udp6`, `raw`, `raw6`, `unix`, `netlink`, `packet`, or `family 40`.
        pub protocol: String => text,
        /// `stream`, `datagram`, `raw`, `seqpacket`; empty for what is no full socket any more or yet.
        pub kind: &'static str => text,
        /// `established`, `listen`, `time_wait`, …
        pub state: &'static str => text,
        /// The address here; the name of a unix socket, with `@` for one outside the file system.
        pub local_address: String => text,
        /// The port here.
        pub local_port: Option<u16> => integer,
        /// The address there.
        pub remote_address: String => text,
        /// The port there.
        pub remote_port: Option<u16> => integer,
        /// The inode's number; 0 for a socket that no process holds.
        pub inode: u64 => bits,
        /// The user who made it.
        pub uid: Option<u32> => integer,
        /// A process that holds it open.
        pub pid: Option<i32> => integer,
        /// That process's name.
        pub comm: Option<String> => text,
        /// The network namespace's number.
        pub namespace: Option<u64> => bits,
        /// What led to it: `table` (the protocol's own), `file`, joined by `+` in this order.
        pub views: &'static str => text,
    }
    question "sockets": "Sockets with their state, addresses and process"
        titled "Sockets" from "SELECT protocol, state, \
         CASE WHEN local_port IS NULL THEN local_address WHEN protocol LIKE '%6' THEN \
         '[' || local_address || ']:' || local_port ELSE local_address || ':' || local_port END AS local, \
         CASE WHEN remote_port IS NULL OR state = 'listen' THEN '' WHEN protocol LIKE '%6' THEN \
         '[' || remote_address || ']:' || remote_port ELSE remote_address || ':' || remote_port END AS remote, \
         pid, comm FROM fact_socket WHERE checkpoint = ?1 ORDER BY protocol, local_port, local_address, inode";
}
