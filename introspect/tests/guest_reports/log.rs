use std::collections::BTreeSet;

use retrovisor_introspect::Linux;

use crate::dump::Dump;

/// Every record of the kernel log: number, level, facility, time to the microsecond, text.
pub(crate) fn agrees(linux: &Linux, dump: &Dump) {
    let records = |reported: &str| -> BTreeSet<String> {
        // After a record's text, lines that begin with a space are its properties.
        reported.lines().filter(|line| !line.starts_with(' ')).map(str::to_owned).collect()
    };
    let reported = records(&dump.before.text("/dev/kmsg"));
    let later = records(&dump.after.text("/dev/kmsg"));
    let read: BTreeSet<String> = linux
        .log
        .iter()
        .map(|line| {
            let priority = u32::from(line.facility) * 8 + u32::from(line.level);
            format!("{priority},{},{},-;{}", line.sequence, line.time_ns / 1000, escaped(&line.text))
        })
        .collect();
    let plain = |set: &BTreeSet<String>| -> BTreeSet<String> {
        // The last flag marks a record that continues another; the caller's id may follow.
        set.iter()
            .map(|line| {
                let (head, text) = line.split_once(';').unwrap();
                let head: Vec<&str> = head.split(',').take(3).collect();
                format!("{};{text}", head.join(","))
            })
            .collect()
    };
    let (reported, later, read) = (plain(&reported), plain(&later), plain(&read));
    let missing: Vec<_> = reported.difference(&read).collect();
    assert_eq!(missing, Vec::<&String>::new(), "missing records");
    let invented: Vec<_> =
        read.iter().filter(|line| !reported.contains(*line) && !later.contains(*line)).collect();
    assert_eq!(invented, Vec::<&String>::new(), "invented records");
    assert!(reported.len() > 100);
}

/// Text in the form of /dev/kmsg.
fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |escaped, byte| match byte {
        b' '..=b'~' if byte != b'\\' => escaped + char::from(byte).encode_utf8(&mut [0; 4]),
        _ => escaped + &format!("\\x{byte:02x}"),
    })
}
