use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use retrovisor_introspect::{Linux, fact::Socket};

use crate::{dump::Dump, statement::Statement};

const PROTOCOLS: [&str; 6] = ["tcp", "tcp6", "udp", "udp6", "raw", "raw6"];
const STATES: [&str; 13] = [
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
];

/// `0100007F:1B59` as address and port.
fn address(text: &str) -> String {
    let (host, port) = text.split_once(':').unwrap();
    let port = u16::from_str_radix(port, 16).unwrap();
    let words: Vec<[u8; 4]> = host
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).unwrap(), 16).unwrap().to_le_bytes())
        .collect();
    match words.as_slice() {
        [four] => format!("{} {port}", Ipv4Addr::from(*four)),
        six => format!("{} {port}", Ipv6Addr::from(<[u8; 16]>::try_from(six.concat()).unwrap())),
    }
}

/// Internet sockets, a line each.
fn reported(statement: &Statement) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for protocol in PROTOCOLS {
        for line in statement.text(&format!("/proc/net/{protocol}")).lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let state = STATES[usize::from_str_radix(words[3], 16).unwrap()];
            let uid = if state == "time_wait" { "-" } else { words[7] };
            all.insert(format!(
                "{protocol} {} {} {state} {uid} {}",
                address(words[1]),
                address(words[2]),
                words[9]
            ));
        }
    }
    all
}

/// Unix sockets: number of the inode, type, whether it listens or is connected, name.
fn reported_unix(statement: &Statement) -> BTreeSet<String> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let kind = ["", "stream", "datagram", "", "", "seqpacket"][words[4].parse::<usize>().unwrap()];
        let state = match (words[3], words[5]) {
            ("00010000", _) => "listen",
            (_, "03") => "established",
            _ => "close",
        };
        // A datagram socket with a peer is in state connected only where the kernel reports it so.
        format!("{} {kind} {state} {}", words[6], words.get(7).unwrap_or(&""))
    };
    statement.text("/proc/net/unix").lines().skip(1).map(line).collect()
}

fn differ(read: &BTreeSet<String>, before: &BTreeSet<String>, after: &BTreeSet<String>) {
    let missing: Vec<_> = before.intersection(after).filter(|line| !read.contains(*line)).collect();
    let invented: Vec<_> =
        read.iter().filter(|line| !before.contains(*line) && !after.contains(*line)).collect();
    assert_eq!((missing, invented), (Vec::new(), Vec::new()), "missing, invented");
}

/// Every socket: addresses, ports, state, user, inode; and the process that holds it.
pub(crate) fn agree(linux: &Linux, dump: &Dump) {
    let number = |number: Option<u16>| number.unwrap().to_string();
    let of_internet: BTreeSet<String> = linux
        .sockets
        .iter()
        .filter(|socket| PROTOCOLS.contains(&socket.protocol.as_str()) && socket.views != "file")
        .map(|socket| {
            let Socket { protocol, local_address, remote_address, state, inode, .. } = socket;
            let (local, remote) = (number(socket.local_port), number(socket.remote_port));
            let uid = socket.uid.map_or("-".to_owned(), |uid| uid.to_string());
            format!("{protocol} {local_address} {local} {remote_address} {remote} {state} {uid} {inode}")
        })
        .collect();
    differ(&of_internet, &reported(&dump.before), &reported(&dump.after));
    let of_unix: BTreeSet<String> = linux
        .sockets
        .iter()
        .filter(|socket| socket.protocol == "unix")
        .map(|socket| format!("{} {} {} {}", socket.inode, socket.kind, socket.state, socket.local_address))
        .collect();
    differ(&of_unix, &reported_unix(&dump.before), &reported_unix(&dump.after));
    // The owners: every link `socket:[…]` of a process is to a socket that is read as that process's.
    for (name, target) in dump.before.under("/proc/") {
        let target = std::str::from_utf8(target).unwrap_or_default();
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix("]"));
        let (Some(inode), true) = (inode, name.contains("/fd/")) else { continue };
        let process: i32 = name.split('/').next().unwrap().parse().unwrap();
        let holder = linux.sockets.iter().find(|socket| socket.inode.to_string() == inode);
        assert!(holder.is_some_and(|socket| socket.pid.is_some_and(|pid| pid <= process)), "{name} {target}");
    }
    for state in ["time_wait", "established", "listen"] {
        for protocol in ["tcp", "tcp6"] {
            let found = linux.sockets.iter().any(|s| (s.protocol.as_str(), s.state) == (protocol, state));
            assert!(found, "no {state} {protocol}");
        }
    }
}
