//! Guests of a few instructions, for tests and benchmarks: they need no firmware, kernel or file, and run wherever KVM
//! is available.
//!
//! Test and guest communicate through one page, [`MAIL`]: it begins with the guest's orders; each vCPU counts at `64 ×
//! (vCPU + 1)`.

mod clockwork;
mod vectors;
mod writer;

use retrovisor_guest::{Gpa, Machine, MachineError, PAGE_SIZE, PageContent};

pub use clockwork::{Beats, beats, clockwork};
pub use vectors::{Registers, registers, vectors};
pub use writer::{Writing, assign, writer};

/// The page with the guest's orders and its results.
pub const MAIL: Gpa = Gpa(0x10_0000);
/// The address of the code: after the mail page.
const CODE: Gpa = Gpa(0x10_1000);

/// Rounds that a vCPU of a [`writer`] has done, times that one of a [`clockwork`] woke up, or that one of
/// [`vectors`] filled its registers.
pub fn rounds(machine: &dyn Machine, vcpu: u64) -> Result<u64, MachineError> {
    word(machine, counters(vcpu))
}

fn counters(vcpu: u64) -> Gpa {
    Gpa(MAIL.0 + 64 * (vcpu + 1))
}

fn word(machine: &dyn Machine, at: Gpa) -> Result<u64, MachineError> {
    let mut bytes = [0; 8];
    machine.memory().read(at, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Writes words to the beginning of the mail page; the machine must be paused.
fn post(machine: &mut dyn Machine, words: &[u64]) -> Result<(), MachineError> {
    let mut page = [0; PAGE_SIZE];
    machine.memory().read_page(MAIL.gfn(), &mut page)?;
    for (place, word) in page.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    machine.write_page(MAIL.gfn(), PageContent::Data(&page))
}
