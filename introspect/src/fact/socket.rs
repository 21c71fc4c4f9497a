fact! {
    /// A socket.
    #[derive(Default)]
    pub struct Socket in "fact_socket" {
        /// `tcp`, `tcp6`, `udp`, `udp6`, `raw`, `raw6`, `unix`, `netlink`, `packet`, or `family 40`.
        pub protocol: String => text,
        /// `stream`, `datagram`, `raw`, `seqpacket`; empty for a request or time-wait socket, which is a shorter
        /// structure.
        pub kind: &'static str => text,
        /// `established`, `listen`, `time_wait`, …
        pub state: &'static str => text,
        /// The local address; the name of a unix socket, with `@` for an abstract one.
        pub local_address: String => text,
        /// The local port.
        pub local_port: Option<u16> => integer sought,
        /// The remote address.
        pub remote_address: String => text sought,
        /// The remote port.
        pub remote_port: Option<u16> => integer,
        /// The inode's number; 0 for a socket that no process holds.
        pub inode: u64 => bits,
        /// The user that created it.
        pub uid: Option<u32> => integer,
        /// A process that holds it open.
        pub pid: Option<i32> => integer,
        /// That process's name.
        pub comm: Option<String> => text,
        /// The network namespace's number.
        pub namespace: Option<u64> => bits,
        /// The views that contain it: `table` (the protocol's own), `file`, joined by `+` in this order.
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
