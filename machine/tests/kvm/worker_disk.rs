//! Disks of a machine in a separate process.

use retrovisor_guest::{
    BLOCK_SIZE, BlockContent, BlockRun, DiskIo as _, Machine as _, RunContent, RunState, StateIo as _,
};
use retrovisor_machine::kvm::DiskConfig;

use crate::worker::{config, launch_config};

#[test]
fn the_blocks_of_a_state_are_read_from_the_worker() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.raw");
    std::fs::write(&base, vec![7; 8 * BLOCK_SIZE]).unwrap();
    let mut config = config(dir.path(), false);
    config.machine.disks.push(DiskConfig {
        base: Some(base),
        size_bytes: Some(100 * BLOCK_SIZE as u64),
        read_only: false,
        changes_dir: dir.path().to_owned(),
    });
    let Some(mut machine) = launch_config(&config) else { return };
    machine.pause().unwrap();
    let (one, two) = ([1; BLOCK_SIZE], [2; BLOCK_SIZE]);
    let data = |page| BlockContent::Data(page);
    machine.write_blocks("d0", 3, &[data(&one), data(&two), BlockContent::Zero]).unwrap();
    let state = machine.capture_state().unwrap();
    machine.write_blocks("d0", 3, &[data(&two), data(&two), data(&two)]).unwrap();
    let mut blocks = machine.disk_blocks(&state.disks[0]).unwrap();
    machine.release_state(&state).unwrap();
    machine.resume().unwrap();
    let (mut bytes, mut page) = (Vec::new(), [0; BLOCK_SIZE]);
    let run = |first, count, content| BlockRun { first, count, content };
    let runs = blocks.read(&[96..100, 2..6, 0..2, 4..5], 3, &mut bytes).unwrap();
    let (base, zero, data) = (RunContent::Base, RunContent::Zero, RunContent::Data);
    let expected = [
        run(96, 4, base),
        run(2, 1, base),
        run(3, 2, data),
        run(5, 1, zero),
        run(0, 2, base),
        run(4, 1, data),
    ];
    assert_eq!(runs, expected);
    assert!(bytes == [one, two, two].concat());
    assert_eq!(blocks.read(&[2..6, 0..2], 2, &mut bytes).unwrap(), expected[1..4]);
    blocks.read_base(7, &mut page).unwrap();
    assert_eq!(page, [7; BLOCK_SIZE]);
    blocks.read_base(8, &mut page).unwrap();
    assert_eq!(page, [0; BLOCK_SIZE]);
    assert!(machine.disk_blocks(&state.disks[0]).is_err(), "it was released");
    drop(blocks);
    assert_eq!(machine.run_state(), RunState::Running);
}
