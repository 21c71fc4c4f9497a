use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use retrovisor_guest::{BlockContent, DiskBlocks, DiskChanges, DiskShape, DiskState, MachineError};

use super::blocks::Blocks;
use super::config::DiskConfig;
use super::overlay::{Overlay, SharedOverlay};

/// The writable disks of a machine, as seen by checkpoints.
pub(in crate::kvm) struct DiskSet {
    /// A prefix that makes references to states unique among machines.
    mark: String,
    shapes: Vec<DiskShape>,
    /// In the order of their shapes.
    disks: Vec<SharedOverlay>,
}

impl DiskSet {
    /// Opens the disks. Returns all of them, also read-only ones, for their devices.
    pub(in crate::kvm) fn open(configs: &[DiskConfig]) -> Result<(Self, Vec<SharedOverlay>), MachineError> {
        let mut number = [0; 8];
        rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty()).map_err(|errno| {
            MachineError::Io { doing: "asking for a random number".into(), source: errno.into() }
        })?;
        let mut set = Self {
            mark: format!("{:016x}-", u64::from_ne_bytes(number)),
            shapes: Vec::new(),
            disks: Vec::new(),
        };
        let mut all = Vec::new();
        for (number, config) in configs.iter().enumerate() {
            let overlay = Overlay::new(&format!("d{number}"), config)?;
            let (shape, read_only) = (overlay.shape().clone(), overlay.is_read_only());
            let disk = Arc::new(Mutex::new(overlay));
            if !read_only {
                set.shapes.push(shape);
                set.disks.push(Arc::clone(&disk));
            }
            all.push(disk);
        }
        Ok((set, all))
    }

    pub(in crate::kvm) fn shapes(&self) -> &[DiskShape] {
        &self.shapes
    }

    /// Captures the contents of all disks.
    pub(in crate::kvm) fn capture(&self) -> Vec<DiskState> {
        let capture = |disk: &SharedOverlay| {
            let mut disk = lock(disk);
            let number = disk.capture();
            self.state(&disk, number)
        };
        self.disks.iter().map(capture).collect()
    }

    /// Whether these are disks of this machine whose contents are retained.
    pub(in crate::kvm) fn check(&self, states: &[DiskState]) -> Result<(), MachineError> {
        let names = |names: Vec<&str>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let expected = names(states.iter().map(|state| &state.disk[..]).collect());
        let found = names(self.shapes.iter().map(|shape| &shape.name[..]).collect());
        if expected != found {
            return Err(MachineError::Mismatch {
                what: "the list of writable disks".into(),
                expected,
                found,
            });
        }
        states
            .iter()
            .filter(|state| !state.reference.is_empty())
            .try_for_each(|state| self.find(state).map(drop))
    }

    /// Restores the disks' contents of a state, which was checked before.
    pub(in crate::kvm) fn apply(&self, states: &[DiskState]) -> Result<(), MachineError> {
        for state in states.iter().filter(|state| !state.reference.is_empty()) {
            let (disk, number) = self.find(state)?;
            lock(disk).go_to(number);
        }
        Ok(())
    }

    /// Releases contents; those that are not retained are ignored.
    pub(in crate::kvm) fn release(&self, states: &[DiskState]) {
        for state in states {
            if let Ok((disk, number)) = self.find(state) {
                lock(disk).release(number);
            }
        }
    }

    /// All retained contents, disk by disk, oldest first.
    pub(in crate::kvm) fn kept(&self) -> Vec<DiskState> {
        let kept = |disk: &SharedOverlay| {
            let disk = lock(disk);
            disk.kept().map(|number| self.state(&disk, number)).collect::<Vec<_>>()
        };
        self.disks.iter().flat_map(kept).collect()
    }

    /// The blocks in which two retained contents differ.
    pub(in crate::kvm) fn changes(
        &self,
        at: &DiskState,
        since: Option<&DiskState>,
    ) -> Result<Box<dyn DiskChanges>, MachineError> {
        let (disk, number) = self.find(at)?;
        let since = match since {
            Some(since) if since.disk == at.disk => Some(self.find(since)?.1),
            Some(since) => return Err(failed(&at.disk, format!("{} is another disk", since.disk))),
            None => None,
        };
        let changes = lock(disk).changes(number, since);
        let changes = changes.ok_or_else(|| failed(&at.disk, format!("{} is not kept", at.reference)))?;
        Ok(Box::new(changes()))
    }

    /// The blocks of a retained state.
    pub(in crate::kvm) fn blocks(&self, at: &DiskState) -> Result<Box<dyn DiskBlocks>, MachineError> {
        let (disk, state) = self.find(at)?;
        let pinned = lock(disk).pin(state);
        let (file, pin) = pinned.ok_or_else(|| failed(&at.disk, format!("{} is not kept", at.reference)))?;
        let (disk, name) = (Arc::clone(disk), at.disk.clone());
        Ok(Box::new(Blocks { disk, name, state, file, _pin: pin }))
    }

    /// Writes consecutive blocks.
    pub(in crate::kvm) fn write(
        &self,
        name: &str,
        first: u64,
        contents: &[BlockContent<'_>],
    ) -> Result<(), MachineError> {
        let (disk, shape) = self.disk(name)?;
        if first.checked_add(contents.len() as u64).is_none_or(|end| end > shape.blocks()) {
            return Err(failed(name, format!("it has no {} blocks from {first} on", contents.len())));
        }
        let mut disk = lock(disk);
        for (block, content) in (first..).zip(contents) {
            disk.put(block, content).map_err(|source| MachineError::Io {
                doing: format!("writing block {block} of disk {name}"),
                source,
            })?;
        }
        Ok(())
    }

    fn disk(&self, name: &str) -> Result<(&SharedOverlay, &DiskShape), MachineError> {
        let found = self.disks.iter().zip(&self.shapes).find(|(_, shape)| shape.name == name);
        found.ok_or_else(|| failed(name, "the machine has no such writable disk".into()))
    }

    /// The disk, and its number for the contents.
    fn find(&self, state: &DiskState) -> Result<(&SharedOverlay, u64), MachineError> {
        let (disk, _) = self.disk(&state.disk)?;
        let number = state.reference.strip_prefix(&self.mark).and_then(|number| number.parse().ok());
        let kept = number.filter(|number| lock(disk).is_kept(*number));
        let number = kept.ok_or_else(|| failed(&state.disk, format!("{} is not kept", state.reference)))?;
        Ok((disk, number))
    }

    fn state(&self, disk: &Overlay, number: u64) -> DiskState {
        DiskState { disk: disk.shape().name.clone(), reference: format!("{}{number}", self.mark) }
    }
}

fn lock(disk: &SharedOverlay) -> MutexGuard<'_, Overlay> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(disk: &str, message: String) -> MachineError {
    MachineError::Driver { doing: format!("reading or writing disk {disk}"), message }
}
