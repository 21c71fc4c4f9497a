//! Guests of a few instructions, assembled with this test.

use std::time::{Duration, Instant};

use retrovisor_guest::{Gfn, Gpa, Machine as _, MemoryLayout, MemorySlot, PAGE_SIZE};
use retrovisor_machine::kvm::{Boot, KvmConfig, KvmMachine, MemorySource};

/// Where the code lies; the page before holds what the test and the guest tell each other.
const CODE: Gpa = Gpa(0x10_1000);
/// A page with: +0 first address to write, +8 pages, +16 stride in bytes, +64 × (vCPU + 1) rounds done.
pub(crate) const MAIL: Gpa = Gpa(0x10_0000);

std::arch::global_asm!(
    r"
    .globl bare_writer_start
    .globl bare_writer_end
bare_writer_start:
    mov r15, 0x100000            # mail
    mov r14, rdi                 # vCPU
    lea r13, [r14 + 1]
    shl r13, 6
    add r13, r15                 # this vCPU's counter
    mov dx, 0x3f8
    mov al, 'u'
    out dx, al
    mov al, 'p'
    out dx, al
2:
    mov rbx, [r15]               # first
    mov rcx, [r15 + 8]           # pages
    mov rsi, [r15 + 16]          # stride
    mov rax, [r13]
    inc rax
    test rcx, rcx
    jz 4f
3:
    mov [rbx + r14 * 8], rax
    add rbx, rsi
    dec rcx
    jnz 3b
4:
    mov [r13], rax
    movdqu xmm0, [r13]           # an extended register that changes each round
    jmp 2b
bare_writer_end:
"
);

unsafe extern "C" {
    static bare_writer_start: u8;
    static bare_writer_end: u8;
}

/// A guest whose vCPUs write a word into each of some pages, round after round, and count the rounds.
fn writer() -> Vec<u8> {
    // SAFETY: both labels bound the bytes of one assembly block in this program.
    unsafe {
        let length = (&raw const bare_writer_end).offset_from_unsigned(&raw const bare_writer_start);
        std::slice::from_raw_parts(&raw const bare_writer_start, length).to_vec()
    }
}

/// Below the hole at 3 GiB and above 4 GiB.
pub(crate) fn split_layout() -> MemoryLayout {
    let slot = |gpa, length_bytes| MemorySlot { gpa: Gpa(gpa), length_bytes };
    MemoryLayout::new(vec![slot(0, 3 << 30), slot(4 << 30, 1 << 30)]).unwrap()
}

/// The guest, or nothing, loudly, where there is no KVM.
pub(crate) fn launch(layout: MemoryLayout, vcpus: u32) -> Option<KvmMachine> {
    launch_image(writer(), layout, vcpus)
}

/// As [`launch`], with code of the caller's, which runs at 1 MiB and a page.
pub(crate) fn launch_image(image: Vec<u8>, layout: MemoryLayout, vcpus: u32) -> Option<KvmMachine> {
    let config = KvmConfig {
        name: "bare".into(),
        layout,
        memory: MemorySource::Fresh,
        vcpus,
        boot: Boot::Flat { image, at: CODE },
        paused: true,
    };
    match KvmMachine::launch(&config) {
        Ok(machine) => Some(machine),
        Err(error) => {
            eprintln!("SKIPPED: no KVM for a bare guest: {error}");
            None
        }
    }
}

/// Tells the guest what to write; paused.
pub(crate) fn tell(machine: &mut KvmMachine, first: Gpa, pages: u64, stride_bytes: u64) {
    let mut page = [0; PAGE_SIZE];
    machine.memory().read_page(MAIL.gfn(), &mut page).unwrap();
    for (at, value) in [(0, first.0), (8, pages), (16, stride_bytes)] {
        page[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    machine.write_page(MAIL.gfn(), retrovisor_guest::PageContent::Data(&page)).unwrap();
}

/// Rounds that a vCPU has done.
pub(crate) fn rounds(machine: &KvmMachine, vcpu: u64) -> u64 {
    word(machine, Gpa(MAIL.0 + 64 * (vcpu + 1)))
}

pub(crate) fn word(machine: &KvmMachine, at: Gpa) -> u64 {
    let mut bytes = [0; 8];
    machine.memory().read(at, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// Waits until the running guest's vCPUs have each done that many rounds more.
pub(crate) fn wait_rounds(machine: &KvmMachine, vcpus: u64, more: u64) {
    let before: Vec<_> = (0..vcpus).map(|vcpu| rounds(machine, vcpu)).collect();
    let began = Instant::now();
    while (0..vcpus).zip(&before).any(|(vcpu, before)| rounds(machine, vcpu) < before + more) {
        assert!(began.elapsed() < Duration::from_secs(30), "the guest does nothing: {:?}", machine.ended());
        std::thread::yield_now();
    }
}

/// A hash of all of the guest's memory.
pub(crate) fn memory_hash(machine: &KvmMachine, frames: impl Iterator<Item = Gfn>) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    let mut page = [0; PAGE_SIZE];
    for gfn in frames {
        machine.memory().read_page(gfn, &mut page).unwrap();
        page.hash(&mut hasher);
    }
    hasher.finish()
}
