use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use crate::mutex::lock;
use crate::pack::{Directory, PackFile, PackStorage};

/// Packs in a directory. Syncing waits while `blocked`; the call that counts `calls_left` down to zero fails.
pub(super) struct TestStorage {
    pub(super) inner: Directory,
    pub(super) control: Arc<Control>,
}

#[derive(Default)]
pub(super) struct Control {
    blocked: Mutex<bool>,
    opened: Condvar,
    pub(super) calls_left: AtomicU32,
}

impl Control {
    fn call(&self) -> io::Result<()> {
        let left = self.calls_left.load(Ordering::SeqCst);
        if left > 0 && self.calls_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    pub(super) fn set_blocked(&self, blocked: bool) {
        *lock(&self.blocked) = blocked;
        self.opened.notify_all();
    }
}

struct TestFile(Arc<dyn PackFile>, Arc<Control>);

impl PackStorage for TestStorage {
    fn list(&self) -> io::Result<Vec<u32>> {
        self.inner.list()
    }
    fn create(&self, number: u32) -> io::Result<Arc<dyn PackFile>> {
        Ok(Arc::new(TestFile(self.inner.create(number)?, Arc::clone(&self.control))))
    }
    fn open(&self, number: u32, write: bool) -> io::Result<Arc<dyn PackFile>> {
        Ok(Arc::new(TestFile(self.inner.open(number, write)?, Arc::clone(&self.control))))
    }
    fn remove(&self, number: u32) -> io::Result<()> {
        self.inner.remove(number)
    }
    fn sync_names(&self) -> io::Result<()> {
        self.inner.sync_names()
    }
    fn path(&self, number: u32) -> PathBuf {
        self.inner.path(number)
    }
}

impl PackFile for TestFile {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(into, offset)
    }
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.1.call()?;
        self.0.write_all_at(bytes, offset)
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn sync(&self) -> io::Result<()> {
        let mut blocked = lock(&self.1.blocked);
        while *blocked {
            blocked = self.1.opened.wait(blocked).unwrap();
        }
        drop(blocked);
        self.1.call()?;
        self.0.sync()
    }
}
