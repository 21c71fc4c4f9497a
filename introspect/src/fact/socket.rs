use retrovisor_guest::fact::{Schema, Value};

use super::{Fact, bits, integer, text};

/// One end of a connection, or what waits for some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// `tcp`, `tcp6`, `udp`, `udp6`, `raw`, `raw6`, `unix`, `netlink`, `packet`, or `family 40`.
    pub protocol: String,
    /// `stream`, `datagram`, `raw`, `seqpacket`; empty for what is no full socket any more or yet.
    pub kind: &'static str,
    /// `established`, `listen`, `time_wait`, …
    pub state: &'static str,
    /// The address here; the name of a unix socket, with `@` for one outside the file system.
    pub local_address: String,
    /// The port here.
    pub local_port: Option<u16>,
    /// The address there.
    pub remote_address: String,
    /// The port there.
    pub remote_port: Option<u16>,
    /// The inode's number; 0 for a socket that no process holds.
    pub inode: u64,
    /// The user who made it.
    pub uid: Option<u32>,
    /// A process that holds it open.
    pub pid: Option<i32>,
    /// That process's name.
    pub comm: Option<String>,
    /// The network namespace's number.
    pub namespace: Option<u64>,
    /// What led to it: `table` (the protocol's own), `file`, joined by `+` in this order.
    pub views: &'static str,
}

impl Fact for Socket {
    const SCHEMA: Schema = Schema {
        table: "fact_socket",
        columns: &[
            text("protocol"),
            text("kind"),
            text("state"),
            text("local_address"),
            integer("local_port"),
            text("remote_address"),
            integer("remote_port"),
            integer("inode"),
            integer("uid"),
            integer("pid"),
            text("comm"),
            integer("namespace"),
            text("views"),
        ],
    };

    fn row(&self) -> Vec<Value> {
        vec![
            self.protocol.clone().into(),
            self.kind.into(),
            self.state.into(),
            self.local_address.clone().into(),
            self.local_port.map(u32::from).into(),
            self.remote_address.clone().into(),
            self.remote_port.map(u32::from).into(),
            bits(self.inode),
            self.uid.into(),
            self.pid.map(i64::from).into(),
            self.comm.clone().into(),
            self.namespace.map_or(Value::Null, bits),
            self.views.into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_its_columns() {
        let socket = Socket { local_port: Some(22), pid: Some(1), namespace: Some(4), ..Default::default() };
        crate::fact::assert_row_fits(&socket);
    }
}
