use std::collections::BTreeSet;

use retrovisor_introspect::Linux;

use crate::dump::Dump;

/// Every mount: numbers, device, root, mount point, options, type, source.
pub(crate) fn agree(linux: &Linux, dump: &Dump) {
    // `25 1 254:0 / /data rw,noatime shared:1 - ext4 /dev/vda rw`
    let reported: BTreeSet<String> = dump
        .before
        .text("/proc/self/mountinfo")
        .lines()
        .map(|line| {
            let (left, right) = line.split_once(" - ").unwrap();
            let (left, right): (Vec<_>, Vec<_>) = (left.split(' ').collect(), right.split(' ').collect());
            let read_only = right[2].split(',').any(|word| word == "ro");
            format!("{} {} {} {read_only}", left[..6].join(" "), right[0], right[1])
        })
        .collect();
    let init = linux.mounts.first().unwrap().namespace;
    let read: BTreeSet<String> = linux
        .mounts
        .iter()
        // Below the root that processes see, kernels of 7.x have an empty file system that /proc cannot show.
        .filter(|mount| mount.namespace == init && mount.kind != "nullfs")
        .map(|mount| {
            format!(
                "{} {} {} {} {} {} {} {} {}",
                mount.id,
                mount.parent_id,
                mount.device,
                mount.root,
                mount.point,
                mount.options,
                mount.kind,
                mount.source,
                mount.read_only
            )
        })
        .collect();
    assert_eq!(read, reported);
    assert!(
        linux.mounts.iter().any(|mount| (mount.point.as_str(), mount.kind.as_str()) == ("/data", "ext4"))
    );
}
