use super::paths::Paths;
use crate::{
    btf::Field,
    fact::{Mount, Task},
    hash::IntegerSet,
    probe::Probe,
};

/// `fs.mount-max` of Linux.
const MOUNTS_MAX: usize = 100_000;
const NAMESPACES_MAX: usize = 4096;
const SOURCE_MAX: usize = 256;

/// Flags of a mount, in the order in which /proc names them.
const OPTIONS: [(u64, &str); 6] = [
    (0x01, "nosuid"),
    (0x02, "nodev"),
    (0x04, "noexec"),
    (0x08, "noatime"),
    (0x10, "nodiratime"),
    (0x20, "relatime"),
];
const READ_ONLY: u64 = 0x40;
const NO_SYMLINKS_FOLLOWED: u64 = 0x80;
const SUPER_READ_ONLY: u64 = 1;

struct Fields {
    proxy: Field,
    namespace: Field,
    number: Field,
    mounts: Mounts,
    id: Field,
    parent: Field,
    point: Field,
    source: Field,
    mount: Field,
    root: Field,
    super_block: Field,
    flags: Field,
    device: Field,
    super_flags: Field,
}

/// The container of a namespace's mounts.
enum Mounts {
    /// A list (kernels up to 6.7): its head, and the link in each mount.
    List(Field, Field),
    /// A tree (since 6.8): its root, and the node in each mount.
    Tree(Field, Field),
}

impl Fields {
    fn of(probe: &Probe) -> Option<Self> {
        let mount = |path: &str| probe.field("mount", path);
        let own = |path: &str| probe.field("mnt_namespace", path);
        let mounts = match (own("mounts"), mount("mnt_node")) {
            (Some(root), Some(node)) => Mounts::Tree(root, node),
            _ => Mounts::List(own("list")?, mount("mnt_list")?),
        };
        Some(Self {
            proxy: probe.field("task_struct", "nsproxy")?,
            namespace: probe.field("nsproxy", "mnt_ns")?,
            number: own("ns.inum")?,
            mounts,
            id: mount("mnt_id")?,
            parent: mount("mnt_parent")?,
            point: mount("mnt_mountpoint")?,
            source: mount("mnt_devname")?,
            mount: mount("mnt")?,
            root: probe.field("vfsmount", "mnt_root")?,
            super_block: probe.field("vfsmount", "mnt_sb")?,
            flags: probe.field("vfsmount", "mnt_flags")?,
            device: probe.field("super_block", "s_dev")?,
            super_flags: probe.field("super_block", "s_flags")?,
        })
    }
}

/// The mounts of every mount namespace that contains a task.
pub(crate) fn read(probe: &Probe, paths: &Paths, tasks: &[Task]) -> Option<Vec<Mount>> {
    let fields = Fields::of(probe)?;
    let reader = probe.reader;
    let (mut proxies, mut namespaces) = (IntegerSet::default(), IntegerSet::default());
    let mut found = Vec::new();
    for task in tasks {
        // A task that has ended is no longer in a namespace.
        let proxy = reader.pointer(task.address, fields.proxy).filter(|proxy| *proxy != 0);
        let Some(proxy) = proxy.filter(|proxy| proxies.insert(*proxy)) else { continue };
        let namespace = reader.pointer(proxy, fields.namespace).filter(|namespace| *namespace != 0);
        let Some(namespace) = namespace.filter(|namespace| namespaces.insert(*namespace)) else { continue };
        if namespaces.len() > NAMESPACES_MAX {
            probe.mark_torn();
            break;
        }
        let Some(number) = reader.number(namespace, fields.number) else { continue };
        let (mounts, whole) = match &fields.mounts {
            Mounts::List(head, link) => {
                let walk = reader.list(namespace.wrapping_add(head.offset_bytes), MOUNTS_MAX);
                (walk.links.iter().map(|at| at.wrapping_sub(link.offset_bytes)).collect(), walk.whole)
            }
            Mounts::Tree(root, node) => {
                let nodes = probe.tree(namespace.wrapping_add(root.offset_bytes), MOUNTS_MAX)?;
                let mounts: Vec<_> =
                    nodes.links.iter().map(|at| at.wrapping_sub(node.offset_bytes)).collect();
                (mounts, nodes.whole)
            }
        };
        if !whole {
            probe.mark_torn();
        }
        let mounts = mounts.into_iter().take(MOUNTS_MAX.saturating_sub(found.len()));
        found.extend(mounts.filter_map(|mount| read_mount(probe, &fields, paths, number, mount)));
    }
    found.sort_by_key(|mount: &Mount| (mount.namespace, mount.id));
    Some(found)
}

fn read_mount(probe: &Probe, fields: &Fields, paths: &Paths, namespace: u64, mount: u64) -> Option<Mount> {
    let reader = probe.reader;
    let signed = |base: u64, field: Field| {
        reader.number(base, field).and_then(|raw| u32::try_from(raw).ok()).map(u32::cast_signed)
    };
    // The list contains cursors of its readers; those have no file system.
    let inner = mount.wrapping_add(fields.mount.offset_bytes);
    let super_block = reader.pointer(inner, fields.super_block).filter(|at| *at != 0)?;
    let root = reader.pointer(inner, fields.root)?;
    let parent = reader.pointer(mount, fields.parent)?;
    let flags = reader.number(inner, fields.flags)?;
    let device = reader.number(super_block, fields.device)?;
    let point = if parent == mount {
        "/".to_owned()
    } else {
        let point = reader.pointer(mount, fields.point)?;
        let above = parent.wrapping_add(fields.mount.offset_bytes);
        paths.of_entry(probe, point, Some(above))?.to_string()
    };
    let source = reader.pointer(mount, fields.source).filter(|at| *at != 0);
    Some(Mount {
        namespace,
        id: signed(mount, fields.id)?,
        parent_id: signed(parent, fields.id)?,
        device: format!("{}:{}", device >> 20, device & 0xf_ffff),
        root: paths.below_root(probe, root)?.to_string(),
        point,
        kind: paths.type_of_superblock(probe, super_block)?,
        source: source.and_then(|at| reader.string(at, SOURCE_MAX)).unwrap_or_else(|| "none".to_owned()),
        options: options(flags),
        read_only: reader.number(super_block, fields.super_flags)? & SUPER_READ_ONLY != 0,
    })
}

fn options(flags: u64) -> String {
    let mut words = vec![if flags & READ_ONLY == 0 { "rw" } else { "ro" }];
    words.extend(OPTIONS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, word)| *word));
    words.extend((flags & NO_SYMLINKS_FOLLOWED != 0).then_some("nosymfollow"));
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_read_as_in_proc() {
        assert_eq!(options(0x27), "rw,nosuid,nodev,noexec,relatime");
        assert_eq!(options(0x40), "ro");
    }
}
