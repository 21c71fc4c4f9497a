use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use lru::LruCache;

use super::marker;
use super::reserve::{Lent, Reserve};
use crate::catalogue::Catalogue;
use crate::content_writer::ContentWriter;
use crate::disk::DiskMap;
use crate::error::{Error, Result};
use crate::fair_lock::{FairGuard, FairLock};
use crate::id::{CheckpointId, DiskId};
use crate::key::Key;
use crate::lock::StoreLock;
use crate::mutex::lock;
use crate::pack::{Directory, PackReader, PackStorage, PackWriter};
use crate::page_cache::PageCache;
use crate::page_map::PageMap;
use crate::reads::{ReadCounter, Reads};

/// Page maps kept in memory; those of one machine share what does not differ.
const MAPS_KEPT: NonZeroUsize = NonZeroUsize::new(64).unwrap();

const CATALOGUE: &str = "catalogue.sqlite";
const PACKS: &str = "packs";
const KEY: &str = "key";
const LOCK: &str = "lock";
/// Settings.
const STORE_ID: &str = "store_id";
const KEY_CHECK: &str = "key_check";

/// The mode in which a store is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For writing; made when there is none.
    Create,
    /// For writing. Only one process at a time can.
    ReadWrite,
    /// For reading, also while another process writes.
    ReadOnly,
}

/// Options of a store; none of them changes data that are already on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// A pack longer than this many bytes gets no more frames; the next one begins.
    pub pack_bytes_max: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { pack_bytes_max: 128 << 20 }
    }
}

/// A snapshot store: one directory with the catalogue, the packs, the key and the lock. Shared between threads.
pub struct Store {
    pub(crate) dir: PathBuf,
    catalogue: Catalogue,
    pub(crate) key: Key,
    pub(crate) packs: PackReader,
    pub(crate) cache: PageCache,
    pub(crate) maps: Mutex<LruCache<CheckpointId, Arc<PageMap>>>,
    pub(crate) reads: ReadCounter,
    pub(crate) disk_maps: Mutex<LruCache<(CheckpointId, DiskId), Arc<DiskMap>>>,
    content_writer: Option<FairLock<ContentWriter>>,
    reserve: Option<Reserve>,
    /// Held while the store is pruned, compacted, repaired or imported into.
    maintenance: Mutex<()>,
    _lock: Option<StoreLock>,
}

impl Store {
    /// Opens the store in a directory.
    pub fn open(dir: &Path, access: Access) -> Result<Self> {
        Self::open_with(dir, access, &StoreOptions::default())
    }

    /// Opens the store in a directory, with options.
    pub fn open_with(dir: &Path, access: Access, options: &StoreOptions) -> Result<Self> {
        Self::open_on(dir, access, *options, Arc::new(Directory::new(&dir.join(PACKS))))
    }

    /// Opens the store in a directory, its packs in a storage of their own.
    pub(crate) fn open_on(
        dir: &Path,
        access: Access,
        options: StoreOptions,
        storage: Arc<dyn PackStorage>,
    ) -> Result<Self> {
        let catalogue_path = dir.join(CATALOGUE);
        let write = access != Access::ReadOnly;
        if access == Access::Create {
            create_dir(dir)?;
        } else if !catalogue_path.exists() {
            return Err(Error::NoStore { dir: dir.to_owned() });
        }
        // A lost catalogue must not be taken for a new store: its packs would be removed.
        let has_packs = || {
            let packs = fs::read_dir(dir.join(PACKS)).into_iter().flatten();
            packs.flatten().any(|entry| entry.path().extension().is_some_and(|extension| extension == "pack"))
        };
        let is_empty = fs::metadata(&catalogue_path).is_ok_and(|meta| meta.len() == 0);
        if (is_empty || !catalogue_path.exists()) && has_packs() {
            let what = "there are packs, but their catalogue is empty or gone".to_owned();
            return Err(Error::NotAStore { path: catalogue_path, what });
        }
        let lock = if write { Some(StoreLock::take(dir, &dir.join(LOCK))?) } else { None };
        // Before the catalogue is opened, which needs space.
        let reserve = if write { Some(Reserve::open(dir)?) } else { None };
        let key_path = dir.join(KEY);
        if !catalogue_path.exists() {
            create_file(&catalogue_path)?;
        }
        let pack_dir = dir.join(PACKS);
        let (catalogue, key) = if write {
            let catalogue = Catalogue::open_for_writing(dir, &catalogue_path)?;
            create_dir(&pack_dir)?;
            // A store that has contents and no key is damaged: a new key would only hide that.
            let is_new = catalogue.setting(KEY_CHECK)?.is_none();
            let key = if is_new {
                refuse_orphans(&*storage, &catalogue_path)?;
                Key::open_or_create(&key_path)?
            } else {
                Key::open(&key_path)?
            };
            if is_new {
                // All names are on the disk before the catalogue has a store id.
                sync_dir(dir)?;
            }
            (catalogue, key)
        } else {
            (Catalogue::open_for_reading(dir, &catalogue_path)?, Key::open(&key_path)?)
        };
        let store_id = identify(&catalogue, &key, &key_path, write)?;
        if write {
            marker::recover(dir, &catalogue)?;
            catalogue.fail_interrupted()?;
        }
        let content_writer = if write {
            let there = storage.list().map_err(Error::io("listing packs in", &pack_dir))?;
            let packs = catalogue.packs_in_use(&there)?;
            let writer = PackWriter::open(
                Arc::clone(&storage),
                store_id,
                &packs,
                options.pack_bytes_max,
                catalogue.next_pack()?,
            )?;
            Some(FairLock::new(ContentWriter::new(writer, &catalogue)?))
        } else {
            None
        };
        Ok(Self {
            dir: dir.to_owned(),
            catalogue,
            key,
            packs: PackReader::new(storage, store_id),
            cache: PageCache::new(),
            maps: Mutex::new(LruCache::new(MAPS_KEPT)),
            reads: ReadCounter::default(),
            disk_maps: Mutex::new(LruCache::new(MAPS_KEPT)),
            content_writer,
            reserve,
            maintenance: Mutex::default(),
            _lock: lock,
        })
    }

    /// The catalogue.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The store's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether this process may write to the store.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.content_writer.is_some()
    }

    /// Bytes on the disk: packs and catalogue.
    pub fn size(&self) -> Result<u64> {
        let packs: u64 = self.catalogue.packs()?.iter().map(|(_, bytes)| bytes).sum();
        Ok(packs + self.catalogue.stored_bytes())
    }

    /// What reading has cost since the store was opened.
    #[must_use]
    pub fn reads(&self) -> Reads {
        self.reads.progress()
    }

    /// Sets the size of the page cache in bytes (256 MiB unless this is called). A rollback to a recent checkpoint
    /// reads its pages from there.
    pub fn set_page_cache_bytes_max(&self, bytes_max: u64) {
        self.cache.set_bytes_max(bytes_max);
    }

    /// Keeps some space of the disk free for the removal of checkpoints, so that a store that has filled its disk can
    /// be emptied: 160 MiB, at most a thirty-second of the file system. Returns whether it is there; it is not made
    /// when less than twice as much is available.
    pub fn keep_reserve(&self) -> Result<bool> {
        self.reserve.as_ref().ok_or_else(|| self.read_only())?.keep()
    }

    /// The space of the reserve, for the removal of checkpoints. Nothing else is stored while it is used.
    pub(crate) fn lend_reserve(&self) -> Result<Lent<'_>> {
        self.reserve.as_ref().ok_or_else(|| self.read_only())?.lend()
    }

    /// An error unless checkpoints and imports may be stored.
    pub(crate) fn must_have_room(&self) -> Result<()> {
        self.reserve.as_ref().ok_or_else(|| self.read_only())?.must_be_kept()
    }

    /// The right to prune, compact, repair or import: one at a time. It comes before all other locks (docs/locks.md).
    pub(crate) fn maintain(&self) -> Result<MutexGuard<'_, ()>> {
        self.must_be_writable()?;
        Ok(lock(&self.maintenance))
    }

    /// The right to add contents. It is held from the first content that is added until the checkpoint that refers to
    /// it is committed: contents without references are removed only by a thread that holds this. An import, which
    /// holds [`Store::maintain`], may release it in between.
    pub(crate) fn content_writer(&self) -> Result<FairGuard<'_, ContentWriter>> {
        self.content_writer.as_ref().map(FairLock::lock).ok_or_else(|| self.read_only())
    }

    /// An error unless contents can be added.
    pub(crate) fn must_be_writable(&self) -> Result<()> {
        if self.is_writable() { Ok(()) } else { Err(self.read_only()) }
    }

    fn read_only(&self) -> Error {
        Error::ReadOnly { dir: self.dir.clone() }
    }
}

/// Reads the store's id and checks the key; creates the id of a new store.
fn identify(catalogue: &Catalogue, key: &Key, key_path: &Path, write: bool) -> Result<[u8; 16]> {
    let wrong = |what: &str| Error::NotAStore { path: key_path.to_owned(), what: what.to_owned() };
    match (catalogue.setting(STORE_ID)?, catalogue.setting(KEY_CHECK)?) {
        (Some(id), Some(check)) => {
            if check != key.check() {
                return Err(wrong("it is the key of another store"));
            }
            id.try_into().map_err(|_| wrong("the catalogue's store id is damaged"))
        }
        (None, None) if write => {
            let id: [u8; 16] = rand::random();
            catalogue.set_settings(&[(STORE_ID, &id), (KEY_CHECK, &key.check())])?;
            Ok(id)
        }
        _ => Err(wrong("the catalogue does not say which store this is")),
    }
}

/// Refuses packs beside a catalogue without settings: their catalogue is lost or elsewhere, and they would be removed
/// as the remains of a crash.
fn refuse_orphans(storage: &dyn PackStorage, catalogue: &Path) -> Result<()> {
    let path = storage.path(0);
    let dir = path.parent().unwrap_or(&path);
    if storage.list().map_err(Error::io("listing packs in", dir))?.is_empty() {
        return Ok(());
    }
    let what = format!(
        "it does not say which store this is, but there are packs in {}. Put a copy of the catalogue back, or move them away",
        dir.display()
    );
    Err(Error::NotAStore { path: catalogue.to_owned(), what })
}

/// Makes a directory, and those above it, with its name on the disk.
fn create_dir(dir: &Path) -> Result<()> {
    let above = dir.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.is_dir() {
        if !above.is_dir() {
            create_dir(above)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::io("creating the directory", dir)(error));
            }
            _ => sync_dir(above)?,
        }
    }
    Ok(())
}

/// Waits until the names in a directory are on the disk.
fn sync_dir(dir: &Path) -> Result<()> {
    fs::File::open(dir).and_then(|file| file.sync_all()).map_err(Error::io("syncing the directory", dir))
}

/// Makes an empty file that only its owner can read; SQLite gives its companions the same mode.
fn create_file(path: &Path) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(path).map(drop).map_err(Error::io("creating", path))
}
