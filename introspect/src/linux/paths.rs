use std::{cell::RefCell, sync::Arc};

use crate::{btf::Field, hash::IntegerMap, printable::printable, probe::Probe};

/// Resolves the paths of files as a process of the first namespace sees them: by directory entries, across mounts.
pub(crate) struct Paths {
    parent: Field,
    name: Field,
    name_length: Field,
    hashed: Option<Field>,
    aliases: Field,
    alias: Field,
    number: Field,
    device: Option<Field>,
    superblock: Field,
    kind: Option<(Field, Field)>,
    file_entry: Field,
    file_mount: Option<Field>,
    mounts: Option<Mounts>,
    /// Directory entry → path below the root of its file system.
    known: RefCell<IntegerMap<u64, Option<Arc<str>>>>,
    /// Mount → its mount point.
    prefixes: RefCell<IntegerMap<u64, Arc<str>>>,
}

/// The fields of a mount.
struct Mounts {
    /// Offset of the `vfsmount` in a `mount`.
    inner: u64,
    root: Field,
    parent: Field,
    point: Field,
    of_superblock: Field,
    /// The link of that list; since 6.17 it is a plain chain without this field.
    instance: Option<Field>,
    namespace: Option<Field>,
}

const NAME_MAX: u64 = 255;
const PATH_MAX: usize = 4096;
const DEPTH_MAX: usize = 128;
const MOUNTS_MAX: usize = 64;
/// Bound on the cached paths.
const KNOWN_MAX: usize = 1 << 18;

impl Paths {
    /// `None` when this kernel's directory entries cannot be read.
    pub(crate) fn new(probe: &Probe) -> Option<Self> {
        let mounts = || {
            let instance = probe.field("mount", "mnt_instance");
            Some(Mounts {
                inner: probe.field("mount", "mnt")?.offset_bytes,
                root: probe.field("vfsmount", "mnt_root")?,
                parent: probe.field("mount", "mnt_parent")?,
                point: probe.field("mount", "mnt_mountpoint")?,
                of_superblock: probe.field("super_block", "s_mounts")?,
                instance,
                namespace: probe.field("mount", "mnt_ns"),
            })
        };
        Some(Self {
            parent: probe.field("dentry", "d_parent")?,
            name: probe.field("dentry", "d_name.name")?,
            name_length: probe.field("dentry", "d_name.len")?,
            hashed: probe.field("dentry", "d_hash.pprev"),
            aliases: probe.field("inode", "i_dentry.first")?,
            alias: probe.field("dentry", "d_u.d_alias").or_else(|| probe.field("dentry", "d_alias"))?,
            number: probe.field("inode", "i_ino")?,
            device: probe.field("inode", "i_rdev"),
            superblock: probe.field("inode", "i_sb")?,
            kind: probe.field("super_block", "s_type").zip(probe.field("file_system_type", "name")),
            file_entry: probe
                .field("file", "f_path.dentry")
                .or_else(|| probe.field("file", "__f_path.dentry"))?,
            file_mount: probe.field("file", "f_path.mnt").or_else(|| probe.field("file", "__f_path.mnt")),
            mounts: mounts(),
            known: RefCell::default(),
            prefixes: RefCell::default(),
        })
    }

    /// The path of an open file (`struct file`).
    pub(crate) fn of_file(&self, probe: &Probe, file: u64) -> Option<Arc<str>> {
        let entry = pointer(probe, file, self.file_entry)?;
        let mount = self.file_mount.and_then(|mount| pointer(probe, file, mount));
        self.of_entry(probe, entry, mount)
    }

    /// The path of an inode: of its first directory entry. An inode without one is named by file system and number.
    pub(crate) fn of_inode(&self, probe: &Probe, inode: u64) -> Option<Arc<str>> {
        let superblock = pointer(probe, inode, self.superblock);
        if let Some(link) = pointer(probe, inode, self.aliases) {
            let entry = link.wrapping_sub(self.alias.offset_bytes);
            let mount = superblock.and_then(|superblock| self.mount_of(probe, superblock));
            return self.of_entry(probe, entry, mount);
        }
        let kind = self.type_of_superblock(probe, superblock?)?;
        let device = self.device.and_then(|device| probe.reader.number(inode, device)).unwrap_or(0);
        if kind == "bdev" && device != 0 {
            return Some(format!("block device {}:{}", device >> 20, device & 0xf_ffff).into());
        }
        Some(format!("{kind} inode {}", probe.reader.number(inode, self.number)?).into())
    }

    /// The path of a directory entry.
    pub(crate) fn of_directory_entry(&self, probe: &Probe, entry: u64) -> Option<Arc<str>> {
        let inode = probe.field("dentry", "d_inode").and_then(|inode| pointer(probe, entry, inode));
        let superblock = inode.and_then(|inode| pointer(probe, inode, self.superblock));
        let mount = superblock.and_then(|superblock| self.mount_of(probe, superblock));
        self.of_entry(probe, entry, mount)
    }

    /// The number of an inode.
    pub(crate) fn inode_number(&self, probe: &Probe, inode: u64) -> Option<u64> {
        probe.reader.number(inode, self.number)
    }

    /// The path of a directory entry below a mount (`vfsmount`).
    pub(crate) fn of_entry(&self, probe: &Probe, entry: u64, mount: Option<u64>) -> Option<Arc<str>> {
        let below = match mount {
            Some(mount) => self.below_mount(probe, entry, mount)?,
            None => self.below_root(probe, entry)?,
        };
        let prefix = mount.and_then(|mount| self.prefix(probe, mount)).filter(|prefix| !prefix.is_empty());
        let unlinked = self
            .hashed
            .is_some_and(|hashed| probe.reader.pointer(entry, hashed) == Some(0) && &*below != "/")
            && !below.ends_with(" (deleted)");
        let deleted = if unlinked { " (deleted)" } else { "" };
        Some(match prefix {
            Some(prefix) if &*below == "/" => prefix,
            Some(prefix) => format!("{prefix}{below}{deleted}").into(),
            None if unlinked => format!("{below}{deleted}").into(),
            None => below,
        })
    }

    /// The path below the part of the file system that a mount shows: all of it, or one folder.
    fn below_mount(&self, probe: &Probe, entry: u64, mount: u64) -> Option<Arc<str>> {
        let below = self.below_root(probe, entry)?;
        let root = self.mounts.as_ref().and_then(|fields| pointer(probe, mount, fields.root));
        let Some(root) = root.and_then(|root| self.below_root(probe, root)).filter(|root| &**root != "/")
        else {
            return Some(below);
        };
        Some(match below.strip_prefix(&*root) {
            Some("") => "/".into(),
            Some(rest) if rest.starts_with('/') => rest.into(),
            _ => below,
        })
    }

    /// The type of the file system of an inode: `ext4`.
    pub(crate) fn file_system(&self, probe: &Probe, inode: u64) -> Option<String> {
        self.type_of_superblock(probe, pointer(probe, inode, self.superblock)?)
    }

    /// The type of a mounted file system.
    pub(crate) fn type_of_superblock(&self, probe: &Probe, superblock: u64) -> Option<String> {
        let (kind, name) = self.kind?;
        probe.reader.string(pointer(probe, pointer(probe, superblock, kind)?, name)?, 32)
    }

    /// The path below the root of the file system, `/` for the root.
    pub(crate) fn below_root(&self, probe: &Probe, entry: u64) -> Option<Arc<str>> {
        if let Some(known) = self.known.borrow().get(&entry) {
            return known.clone();
        }
        let found = self.climb(probe, entry);
        let mut known = self.known.borrow_mut();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(entry, found.clone());
        found
    }

    fn climb(&self, probe: &Probe, entry: u64) -> Option<Arc<str>> {
        if pointer(probe, entry, self.parent)? == entry {
            // The root of a file system, or a file outside all directories: shared memory, a memfd.
            let name = self.name(probe, entry)?;
            let path = if name == "/" { name } else { format!("/{name} (deleted)") };
            return Some(path.into());
        }
        let (mut names, mut at): (Vec<String>, u64) = (Vec::new(), entry);
        for _ in 0..DEPTH_MAX {
            let parent = pointer(probe, at, self.parent)?;
            if parent == at {
                let mut path = String::new();
                for name in names.iter().rev() {
                    path.push('/');
                    path.push_str(name);
                    if path.len() > PATH_MAX {
                        return None;
                    }
                }
                return Some(path.into());
            }
            names.push(self.name(probe, at)?);
            at = parent;
        }
        probe.mark_torn();
        None
    }

    /// The last component of an entry's path.
    pub(crate) fn name(&self, probe: &Probe, entry: u64) -> Option<String> {
        let length = probe.reader.number(entry, self.name_length).filter(|length| *length <= NAME_MAX)?;
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        probe.reader.read(pointer(probe, entry, self.name)?, &mut bytes)?;
        Some(printable(&bytes))
    }

    /// The mount point of a mount (`vfsmount`): empty for the root.
    fn prefix(&self, probe: &Probe, mount: u64) -> Option<Arc<str>> {
        if let Some(known) = self.prefixes.borrow().get(&mount) {
            return Some(Arc::clone(known));
        }
        let fields = self.mounts.as_ref()?;
        let (mut at, mut prefix) = (mount.wrapping_sub(fields.inner), String::new());
        for _ in 0..MOUNTS_MAX {
            let parent = pointer(probe, at, fields.parent)?;
            if parent == at {
                break;
            }
            let above = parent.wrapping_add(fields.inner);
            let below = self.below_mount(probe, pointer(probe, at, fields.point)?, above)?;
            if &*below != "/" {
                prefix.insert_str(0, &below);
            }
            at = parent;
        }
        let prefix: Arc<str> = prefix.into();
        self.prefixes.borrow_mut().insert(mount, Arc::clone(&prefix));
        Some(prefix)
    }

    /// The first mount (`vfsmount`) of a file system that is in a namespace and whose root is the file system's.
    fn mount_of(&self, probe: &Probe, superblock: u64) -> Option<u64> {
        let fields = self.mounts.as_ref()?;
        let head = superblock.checked_add(fields.of_superblock.offset_bytes)?;
        let mounts: Vec<u64> = match fields.instance {
            Some(instance) if fields.of_superblock.size_bytes > 8 => {
                let walk = probe.reader.list(head, MOUNTS_MAX);
                walk.links.iter().map(|link| link.wrapping_sub(instance.offset_bytes)).collect()
            }
            _ => probe.reader.u64(head).into_iter().collect(),
        };
        let shown = |mount: &&u64| {
            let namespace = fields.namespace.and_then(|field| probe.reader.pointer(**mount, field));
            // A mount that is not in use yet has no namespace; a kernel-internal one has an error number there.
            namespace.is_some_and(|namespace| namespace != 0 && namespace < u64::MAX - 4095)
        };
        let mount = mounts.iter().find(shown)?;
        let inner = mount.checked_add(fields.inner)?;
        pointer(probe, inner, fields.root).map(|_| inner)
    }
}

/// A pointer that is not null.
fn pointer(probe: &Probe, base: u64, field: Field) -> Option<u64> {
    probe.reader.pointer(base, field).filter(|pointer| *pointer != 0)
}
