//! A bare guest that writes to its disk all the time: the disk is rolled back with the memory, whenever the guest was
//! stopped.

use std::path::Path;

use retrovisor_guest::{
    BLOCK_SIZE, BlockContent, ClockPolicy, DiskIo as _, DiskState, Gfn, Gpa, Machine as _, MachineError,
    MemoryIo as _, MemoryLayout, Page, PageContent, PageSet, RunContent, StateIo as _, ZERO_PAGE,
};
use retrovisor_machine::kvm::{Boot, DiskConfig, KvmMachine};

use crate::bare::{self, MAIL};
use crate::past::Past;

const BLOCKS: u64 = 64;
const DESCRIPTORS: u64 = 0x20_0000;
const AVAILABLE: u64 = 0x20_1000;
const USED: u64 = 0x20_2000;
const HEADER: u64 = 0x20_3000;
const DATA: u64 = 0x20_4000;

// Finds the disk among the virtio devices, writes the registers that the mail page lists, then writes one block in each
// round: the round's number, first and last in the block that has this number modulo 64. It halts when the disk returns
// an error.
std::arch::global_asm!(
    r"
    .globl disk_writer_start
    .globl disk_writer_end
disk_writer_start:
    mov r15, 0x100000            # mail
    mov r12, 0xd0000000
1:
    cmp dword ptr [r12 + 8], 2   # a disk
    je 2f
    add r12, 0x1000
    jmp 1b
2:
    mov rcx, [r15 + 0x100]       # count of registers
    lea rbx, [r15 + 0x108]       # offset and value of each
3:
    test rcx, rcx
    jz 4f
    mov rdx, [rbx]
    mov eax, [rbx + 8]
    mov [r12 + rdx], eax
    add rbx, 16
    dec rcx
    jmp 3b
4:
    mov rax, [r15 + 64]          # rounds done
    inc rax
    mov rdx, rax
    and rdx, 63
    shl rdx, 3
    mov rbx, 0x203000
    mov [rbx + 8], rdx           # sector
    mov rbx, 0x204000
    mov [rbx], rax
    mov [rbx + 4088], rax
    mov rbx, 0x201000
    inc word ptr [rbx + 2]       # one more request
    mov dword ptr [r12 + 0x50], 0
5:
    mov cx, [rbx + 2]
    mov rdx, 0x202000
    cmp cx, [rdx + 2]
    jne 5b
    mov rdx, 0x203000
    cmp byte ptr [rdx + 16], 0
    jne 6f
    mov dword ptr [r12 + 0x64], 1
    mov [r15 + 64], rax
    jmp 4b
6:
    hlt
disk_writer_end:
"
);

unsafe extern "C" {
    static disk_writer_start: u8;
    static disk_writer_end: u8;
}

fn code() -> Boot {
    // SAFETY: both labels bound the bytes of one assembly block in this program.
    let image = unsafe {
        let length = (&raw const disk_writer_end).offset_from_unsigned(&raw const disk_writer_start);
        std::slice::from_raw_parts(&raw const disk_writer_start, length).to_vec()
    };
    Boot::Flat { image, at: Gpa(MAIL.0 + 0x1000) }
}

fn layout() -> MemoryLayout {
    MemoryLayout::flat(4 << 20).unwrap()
}

/// The guest with a disk of 64 blocks, whose base has the first half; paused, before its first instruction.
fn launch(dir: &Path) -> Option<KvmMachine> {
    let base = dir.join("base.raw");
    if !base.exists() {
        std::fs::write(&base, base_bytes()).unwrap();
    }
    let mut config = bare::config(layout(), 1, code());
    config.disks.push(DiskConfig {
        base: Some(base),
        size_bytes: Some(BLOCKS * BLOCK_SIZE as u64),
        read_only: false,
        changes_dir: dir.to_owned(),
    });
    match KvmMachine::launch(&config) {
        Ok(machine) => Some(machine),
        Err(error @ (MachineError::Config { .. } | MachineError::Unsupported { .. })) => {
            eprintln!("SKIPPED: no KVM for a bare guest: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn base_bytes() -> Vec<u8> {
    vec![0xbb; 32 * BLOCK_SIZE]
}

/// Writes the guest's initial memory.
fn prepare(machine: &mut KvmMachine) {
    let mut put = |at: u64, words: &[u64]| {
        let mut page = ZERO_PAGE;
        for (place, word) in page[usize::try_from(at % 4096).unwrap()..].chunks_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        machine.write_page(Gfn(at >> 12), PageContent::Data(&page)).unwrap();
    };
    // Reset, acknowledge, driver, version 1 and nothing else, a queue of 8 descriptors, go.
    let registers: [(u64, u64); 15] = [
        (0x70, 0),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x30, 0),
        (0x38, 8),
        (0x80, DESCRIPTORS),
        (0x84, 0),
        (0x90, AVAILABLE),
        (0x94, 0),
        (0xa0, USED),
        (0xa4, 0),
        (0x44, 1),
        (0x70, 15),
    ];
    let mut mail = vec![registers.len() as u64];
    mail.extend(registers.iter().flat_map(|(offset, value)| [*offset, *value]));
    put(MAIL.0 + 0x100, &mail);
    // Header and data to be read, a status to be written. All entries of the available ring name the first.
    let descriptor = |bytes: u64, flags: u64, next: u64| bytes | flags << 32 | next << 48;
    put(
        DESCRIPTORS,
        &[HEADER, descriptor(16, 1, 1), DATA, descriptor(4096, 1, 2), HEADER + 16, descriptor(1, 2, 0)],
    );
    put(HEADER, &[1, 0, 0xff]);
}

/// The contents of the disk at a captured state.
fn contents(machine: &KvmMachine, at: &DiskState) -> Vec<Page> {
    let mut base = base_bytes();
    base.resize(64 * BLOCK_SIZE, 0);
    let mut blocks: Vec<Page> = base.chunks(BLOCK_SIZE).map(|block| block.try_into().unwrap()).collect();
    let mut changes = machine.disk_changes(at, None).unwrap();
    let mut bytes = Vec::new();
    while let Some(run) = changes.next_run(&mut bytes).unwrap() {
        for (number, block) in (run.first..run.first + run.count).enumerate() {
            let block = &mut blocks[usize::try_from(block).unwrap()];
            match run.content {
                RunContent::Zero => *block = ZERO_PAGE,
                RunContent::Base => {}
                RunContent::Data => block.copy_from_slice(&bytes[number * BLOCK_SIZE..][..BLOCK_SIZE]),
            }
        }
    }
    blocks
}

/// Every block has the last round that wrote it: a complete round, or possibly one in progress.
fn assert_fits(machine: &KvmMachine, at: &DiskState) {
    let done = bare::rounds(machine, 0);
    for (number, block) in (0..).zip(contents(machine, at)) {
        let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
        let last = (1..=done).rev().find(|round| round % BLOCKS == number);
        match last {
            _ if (done + 1) % BLOCKS == number && word(0) == done + 1 => assert_eq!(word(4088), done + 1),
            Some(last) => {
                assert_eq!((word(0), word(4088)), (last, last), "block {number} after {done} rounds");
            }
            None => assert_eq!(block, [if number < 32 { 0xbb } else { 0 }; BLOCK_SIZE]),
        }
    }
}

fn run(machine: &mut KvmMachine, rounds: u64) {
    machine.resume().unwrap();
    bare::wait_rounds(machine, 1, rounds);
    machine.pause().unwrap();
    assert_eq!(machine.ended(), None);
}

#[test]
fn the_disk_goes_back_with_the_memory_and_into_another_machine() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut machine) = launch(dir.path()) else { return };
    assert_eq!((machine.disks().len(), machine.disks()[0].blocks()), (1, BLOCKS));
    prepare(&mut machine);
    run(&mut machine, 20);
    let past = Past::of(&mut machine);
    let then = past.state.disks[0].clone();
    assert_fits(&machine, &then);
    let first = contents(&machine, &then);
    for turn in 0..40 {
        // At least two: the first may have been written before the capture, without being counted yet.
        run(&mut machine, 2 + turn * 7 % 90);
        let later = machine.capture_state().unwrap();
        assert_fits(&machine, &later.disks[0]);
        if turn % 2 == 0 {
            machine.release_state(&later).unwrap();
        }
        let back = past.put_back(&mut machine, ClockPolicy::StandStill);
        assert!(back.contains(Gfn(USED >> 12)), "the device's own writes are dirty");
        let again = machine.capture_state().unwrap();
        assert!(contents(&machine, &again.disks[0]) == first);
        machine.release_state(&again).unwrap();
    }
    assert_eq!(machine.retained_disks().unwrap().len(), 21);
    assert!(machine.retains_disks(&past.state).unwrap());

    let mut other = launch(dir.path()).unwrap();
    assert!(!other.retains_disks(&past.state).unwrap());
    assert!(other.apply_state(&past.state, ClockPolicy::StandStill).is_err(), "it has not those contents");
    for (gfn, page) in layout().gfns().zip(past.pages()) {
        other.write_page(gfn, PageContent::Data(page)).unwrap();
    }
    let blocks: Vec<_> = first.iter().map(BlockContent::Data).collect();
    other.write_blocks("d0", 0, &blocks).unwrap();
    let mut state = past.state.clone();
    state.disks = vec![DiskState::unchanged("d0")];
    other.apply_state(&state, ClockPolicy::StandStill).unwrap();
    let before = bare::rounds(&other, 0);
    run(&mut other, 70);
    assert!(bare::rounds(&other, 0) >= before + 70);
    let later = other.capture_state().unwrap();
    assert_fits(&other, &later.disks[0]);
}

#[test]
fn a_state_without_the_disk_and_a_running_machine_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut machine) = launch(dir.path()) else { return };
    prepare(&mut machine);
    let mut state = machine.capture_state().unwrap();
    let disks = std::mem::take(&mut state.disks);
    assert!(machine.apply_state(&state, ClockPolicy::StandStill).is_err());
    state.disks = disks;
    machine.apply_state(&state, ClockPolicy::StandStill).unwrap();
    machine.release_state(&state).unwrap();
    assert!(machine.apply_state(&state, ClockPolicy::StandStill).is_err(), "it was released");
    machine.resume().unwrap();
    assert!(machine.write_blocks("d0", 0, &[BlockContent::Zero]).is_err());
    machine.pause().unwrap();
    let mut dirty = PageSet::empty(&layout());
    machine.take_dirty(&mut dirty).unwrap();
}
