use crate::{Gfn, MachineError, MemoryView, PageContent, PageSet};

/// A machine's memory: reading, writing, and finding the frames that were written.
///
/// # The contract of [`MemoryIo::take_dirty`]
///
/// A frame is *known* from the moment its bytes are read through [`MemoryIo::memory`], or written by
/// [`MemoryIo::write_page`] or [`MemoryIo::write_lines`], until a call of `take_dirty` reports it. After every call that
/// succeeds, each known frame holds the bytes that were last read from it or written to it.
///
/// This holds whoever wrote (a vCPU, a device, this project), whether or not the guest ran when the frame was read or
/// when `take_dirty` was called, and also if the frame returned to earlier bytes. The first call of a machine reports
/// every frame. A call that fails may report some frames; the next one that succeeds also reports those that the failed
/// one found. More frames may be reported than were written.
pub trait MemoryIo {
    /// Adds the frames that may have been written since the last call to `into`. May be called while the guest runs.
    /// Frames written by [`MemoryIo::write_page`] need not be reported, since the caller knows their bytes.
    fn take_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError>;

    /// The guest's memory. Stable only while paused.
    fn memory(&self) -> &dyn MemoryView;

    /// Writes one frame. Needs the machine paused. Code takes effect for the guest at the next
    /// [`apply_state`](crate::StateIo::apply_state) (a translator may use old code until then), data at the next
    /// [`resume`](crate::Machine::resume).
    fn write_page(&mut self, gfn: Gfn, content: PageContent<'_>) -> Result<(), MachineError>;

    /// Like [`MemoryIo::write_page`], for a frame that already equals `content` except for some lines: writes line `n`
    /// (64 bytes) where bit `n` of `lines` is set. A driver may write the whole frame, and does so by default.
    fn write_lines(&mut self, gfn: Gfn, content: PageContent<'_>, lines: u64) -> Result<(), MachineError> {
        let _ = lines;
        self.write_page(gfn, content)
    }
}
