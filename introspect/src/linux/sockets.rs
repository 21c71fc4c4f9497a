use std::net::{Ipv4Addr, Ipv6Addr};

use super::files::Files;
use crate::{
    btf::Field,
    fact::Socket,
    hash::{IntegerMap, IntegerSet},
    printable::printable,
    probe::Probe,
};

const SOCKETS_MAX: usize = 1 << 17;
const BUCKETS_MAX: u64 = 1 << 20;
const NAMESPACES_MAX: usize = 4096;
/// Longest name of a unix socket, in bytes.
const NAME_MAX: usize = 108;
const FAMILY_UNIX: u64 = 1;
const FAMILY_INET: u64 = 2;
const FAMILY_INET6: u64 = 10;
const STATE_TIME_WAIT: u64 = 6;
const STATE_NEW: u64 = 12;
/// By the kernel's numbers; unix sockets use some of them, too.
const STATES: [&str; 14] = [
    "",
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait1",
    "fin_wait2",
    "time_wait",
    "close",
    "close_wait",
    "last_ack",
    "listen",
    "closing",
    "new_syn_recv",
    "bound_inactive",
];

/// The fields of a socket in this kernel.
struct Fields {
    node: Field,
    family: Field,
    state: Field,
    destination: Field,
    source: Field,
    destination6: Option<Field>,
    source6: Option<Field>,
    destination_port: Field,
    source_port: Field,
    namespace: Option<Field>,
    namespace_number: Option<Field>,
    kind: Field,
    protocol: Field,
    uid: Option<Field>,
    socket: Field,
    /// The inode next to a socket: offset from `struct socket` to the inode's number.
    inode: Option<u64>,
    inode_number: Field,
    unix_address: Option<Field>,
    unix_length: Option<Field>,
    unix_name: Option<Field>,
}

impl Fields {
    fn of(probe: &Probe) -> Option<Self> {
        let common = |path: &str| probe.field("sock_common", path);
        let sock = |path: &str| probe.field("sock", path);
        let alloc = |path: &str| probe.field("socket_alloc", path);
        let inode = alloc("vfs_inode").zip(alloc("socket"));
        Some(Self {
            node: common("skc_node")?,
            family: common("skc_family")?,
            state: common("skc_state")?,
            destination: common("skc_daddr")?,
            source: common("skc_rcv_saddr")?,
            destination6: common("skc_v6_daddr"),
            source6: common("skc_v6_rcv_saddr"),
            destination_port: common("skc_dport")?,
            source_port: common("skc_num")?,
            namespace: common("skc_net.net"),
            namespace_number: probe.field("net", "ns.inum"),
            kind: sock("sk_type")?,
            protocol: sock("sk_protocol")?,
            uid: sock("sk_uid.val"),
            socket: sock("sk_socket")?,
            inode: inode.map(|(inode, socket)| inode.offset_bytes.wrapping_sub(socket.offset_bytes)),
            inode_number: probe.field("inode", "i_ino")?,
            unix_address: probe.field("unix_sock", "addr"),
            unix_length: probe.field("unix_address", "len"),
            unix_name: probe.field("unix_address", "name"),
        })
    }
}

/// Every socket in a protocol's table or behind an open file.
pub(crate) fn read(probe: &Probe, files: &Files) -> Option<Vec<Socket>> {
    let fields = Fields::of(probe)?;
    let mut found =
        Found { probe, node: fields.node.offset_bytes, seen: IntegerSet::default(), all: Vec::new() };
    for table in [tcp, datagrams, raw, unix] {
        // A table that this kernel does not have contributes no sockets.
        let _ = table(&mut found);
    }
    let mut holders = IntegerMap::default();
    for (sock, file) in &files.sockets {
        holders.entry(*sock).or_insert(*file);
    }
    let mut sockets: Vec<Socket> = Vec::new();
    for sock in &found.all {
        let holder = holders.get(sock).copied();
        sockets.extend(read_socket(probe, &fields, *sock, holder.is_none()).map(|socket| {
            let views = if holder.is_some() { "table+file" } else { "table" };
            held(Socket { views, ..socket }, files, holder)
        }));
    }
    for (sock, file) in &files.sockets {
        if sockets.len() < SOCKETS_MAX && found.seen.insert(*sock) {
            let socket = read_socket(probe, &fields, *sock, false);
            sockets.extend(socket.map(|socket| held(Socket { views: "file", ..socket }, files, Some(*file))));
        }
    }
    let key =
        |socket: &Socket| (socket.protocol.clone(), socket.local_port, socket.inode, socket.remote_port);
    sockets.sort_by_cached_key(key);
    Some(sockets)
}

fn held(socket: Socket, files: &Files, holder: Option<usize>) -> Socket {
    match holder.and_then(|file| files.all.get(file)) {
        Some(file) => Socket { pid: Some(file.pid), comm: Some(file.comm.clone()), ..socket },
        None => socket,
    }
}

/// The sockets found, each once.
struct Found<'p, 'a> {
    probe: &'p Probe<'a>,
    /// Offset in a socket of the link that its table uses.
    node: u64,
    seen: IntegerSet<u64>,
    all: Vec<u64>,
}

impl Found<'_, '_> {
    /// Follows the chains of an array of heads. A chain ends with 0, or with an odd number that identifies the chain.
    fn follow(&mut self, heads: u64, count: u64, apart: u64) -> Option<()> {
        if count > BUCKETS_MAX {
            self.probe.mark_torn();
            return None;
        }
        // The heads are read in pieces, since most of them are empty.
        let per_piece = (4096 / apart.max(8)).max(1);
        let mut piece = vec![0; usize::try_from(per_piece * apart).ok()?];
        for first in (0..count).step_by(usize::try_from(per_piece).ok()?) {
            let length = usize::try_from((count - first).min(per_piece) * apart).ok()?;
            self.probe.reader.read(heads.checked_add(first * apart)?, piece.get_mut(..length)?)?;
            for head in piece[..length].chunks(usize::try_from(apart).ok()?) {
                let head = u64::from_le_bytes(*head.first_chunk()?);
                if head != 0 && head & 1 == 0 {
                    self.chain(head);
                }
            }
        }
        Some(())
    }

    fn chain(&mut self, mut link: u64) {
        while link != 0 && link & 1 == 0 {
            let sock = link.wrapping_sub(self.node);
            // A socket that was already seen means a cycle, or a chain that was moved during the walk.
            if self.all.len() >= SOCKETS_MAX || !self.seen.insert(sock) {
                self.probe.mark_torn();
                return;
            }
            let Some(next) = self.probe.reader.u64(link) else {
                self.probe.mark_torn();
                return;
            };
            self.all.push(sock);
            link = next;
        }
    }
}

fn tcp(found: &mut Found) -> Option<()> {
    let probe = found.probe;
    let table = probe.symbol("tcp_hashinfo")?;
    let of = |path: &str| probe.number("tcp_hashinfo", "inet_hashinfo", path);
    let apart = probe.types.size_of("inet_ehash_bucket")?;
    let chain = probe.field("inet_ehash_bucket", "chain")?.offset_bytes;
    found.follow(of("ehash")?.checked_add(chain)?, of("ehash_mask")?.checked_add(1)?, apart)?;
    let apart = probe.types.size_of("inet_listen_hashbucket")?;
    let head = probe.field("inet_listen_hashbucket", "nulls_head")?.offset_bytes;
    if let Some(listening) = probe.field("inet_hashinfo", "listening_hash") {
        // In kernels up to 5.18 there is a table for listeners inside.
        let (_, count) = probe.types.array(listening)?;
        found.follow(table.checked_add(listening.offset_bytes + head)?, count, apart)
    } else {
        found.follow(of("lhash2")?.checked_add(head)?, of("lhash2_mask")?.checked_add(1)?, apart)
    }
}

fn datagrams(found: &mut Found) -> Option<()> {
    let probe = found.probe;
    let of = |path: &str| probe.number("udp_table", "udp_table", path);
    let apart = probe.types.size_of("udp_hslot")?;
    let head = probe.field("udp_hslot", "head")?.offset_bytes;
    found.follow(of("hash")?.checked_add(head)?, of("mask")?.checked_add(1)?, apart)
}

fn raw(found: &mut Found) -> Option<()> {
    let probe = found.probe;
    let table = probe.field("raw_hashinfo", "ht")?;
    let (apart, count) = probe.types.array(table)?;
    for symbol in ["raw_v4_hashinfo", "raw_v6_hashinfo"] {
        if let Some(hash) = probe.symbol(symbol) {
            found.follow(hash.checked_add(table.offset_bytes)?, count, apart)?;
        }
    }
    Some(())
}

fn unix(found: &mut Found) -> Option<()> {
    let probe = found.probe;
    // 256 chains each for bound and for unbound sockets.
    let all = 512;
    if let Some(table) = probe.symbol("unix_socket_table") {
        return found.follow(table, all, 8);
    }
    let buckets = probe.field("net", "unx.table.buckets")?;
    let link = probe.field("net", "list")?;
    let namespaces = probe.reader.list(probe.symbol("net_namespace_list")?, NAMESPACES_MAX);
    if !namespaces.whole {
        probe.mark_torn();
    }
    for namespace in namespaces.links {
        let namespace = namespace.wrapping_sub(link.offset_bytes);
        found.follow(probe.reader.pointer(namespace, buckets)?, all, 8)?;
    }
    Some(())
}

/// One socket; `short` when it may be one of the shorter structures for a connection that is being made or has ended.
fn read_socket(probe: &Probe, fields: &Fields, sock: u64, short: bool) -> Option<Socket> {
    let reader = probe.reader;
    let number = |field: Field| reader.number(sock, field);
    let (family, state) = (number(fields.family)?, number(fields.state)?);
    let whole = !(short && matches!(state, STATE_TIME_WAIT | STATE_NEW));
    let namespace = fields.namespace.and_then(number);
    let mut socket = Socket {
        state: usize::try_from(state).ok().and_then(|state| STATES.get(state)).copied().unwrap_or("unknown"),
        namespace: namespace.and_then(|at| reader.number(at, fields.namespace_number?)),
        ..Socket::default()
    };
    let mut protocol = 6;
    if whole {
        protocol = number(fields.protocol)?;
        socket.kind = match number(fields.kind)? {
            1 => "stream",
            2 => "datagram",
            3 => "raw",
            5 => "seqpacket",
            _ => "other",
        };
        socket.uid = fields.uid.and_then(number).and_then(|uid| u32::try_from(uid).ok());
        let file = number(fields.socket)?;
        if let (Some(inode), true) = (fields.inode, file != 0) {
            socket.inode = reader.number(file.wrapping_add(inode), fields.inode_number)?;
        }
    }
    let six = if family == FAMILY_INET6 { "6" } else { "" };
    socket.protocol = match (family, socket.kind, protocol) {
        (FAMILY_UNIX, ..) => "unix".to_owned(),
        (FAMILY_INET | FAMILY_INET6, "raw", _) => format!("raw{six}"),
        (FAMILY_INET | FAMILY_INET6, _, 6) => format!("tcp{six}"),
        (FAMILY_INET | FAMILY_INET6, _, 17) => format!("udp{six}"),
        (FAMILY_INET | FAMILY_INET6, _, other) => format!("ip{six} protocol {other}"),
        (16, ..) => "netlink".to_owned(),
        (17, ..) => "packet".to_owned(),
        (other, ..) => format!("family {other}"),
    };
    match family {
        FAMILY_INET => {
            let four = |field: Field| {
                u32::try_from(number(field)?).ok().map(|raw| Ipv4Addr::from(raw.to_le_bytes()).to_string())
            };
            (socket.local_address, socket.remote_address) = (four(fields.source)?, four(fields.destination)?);
        }
        FAMILY_INET6 => {
            let six = |field: Option<Field>| {
                let mut bytes = [0; 16];
                reader.read(sock.checked_add(field?.offset_bytes)?, &mut bytes)?;
                Some(Ipv6Addr::from(bytes).to_string())
            };
            (socket.local_address, socket.remote_address) = (six(fields.source6)?, six(fields.destination6)?);
        }
        FAMILY_UNIX => socket.local_address = unix_name(probe, fields, sock).unwrap_or_default(),
        _ => (),
    }
    if matches!(family, FAMILY_INET | FAMILY_INET6) {
        socket.local_port = u16::try_from(number(fields.source_port)?).ok();
        socket.remote_port = u16::try_from(number(fields.destination_port)?).ok().map(u16::swap_bytes);
    }
    Some(socket)
}

/// The name that a unix socket is bound to.
fn unix_name(probe: &Probe, fields: &Fields, sock: u64) -> Option<String> {
    let reader = probe.reader;
    let address = reader.pointer(sock, fields.unix_address?).filter(|address| *address != 0)?;
    // The family precedes the name, and is included in the length.
    let length = usize::try_from(reader.number(address, fields.unix_length?)?).ok()?.checked_sub(2)?;
    let mut name = vec![0; length.min(NAME_MAX)];
    reader.read(address.checked_add(fields.unix_name?.offset_bytes + 2)?, &mut name)?;
    Some(match name.split_first() {
        // The name of an abstract socket ends at its length, and may contain zeros.
        Some((0, name)) => format!("@{}", printable(name).replace("\\x00", "@")),
        _ => printable(name.split(|byte| *byte == 0).next().unwrap_or_default()),
    })
}
