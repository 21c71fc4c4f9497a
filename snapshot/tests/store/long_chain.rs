//! Restoring costs the same however long the chain and however many rollbacks lie behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovisor_snapshot::{Access, CheckpointId, RollbackRequest, Store, image_hash};

use crate::toy::{Lab, Toy};

#[test]
fn two_thousand_checkpoints_and_fifty_rollbacks() {
    const CHECKPOINTS: u64 = 2_000;
    let mut lab = Lab::new(2_048);
    let mut kept: Vec<(CheckpointId, blake3::Hash)> = Vec::new();
    for at in 0..2_048 {
        lab.toy.scribble(at, at as u64);
    }
    for at in 0..CHECKPOINTS {
        for page in 0..20 {
            let index = (at * 37 + page * 101) % 2_048;
            lab.toy.scribble(usize::try_from(index).unwrap(), at * 64 + page % 7);
        }
        let id = lab.checkpoint().id;
        if at % 40 == 0 {
            kept.push((id, image_hash(&lab.toy).unwrap()));
            if at % 80 == 0 {
                let back = kept[kept.len() * 2 / 3].0;
                lab.recorder.rollback(&mut lab.toy, back, &RollbackRequest::default()).unwrap();
            }
        }
    }
    let undone = (0..25).map(|_| lab.recorder.undo(&mut lab.toy, &RollbackRequest::default()).unwrap());
    assert_eq!(undone.count(), 25);
    let Lab { dir, store, recorder, toy, machine } = lab;
    let layout = toy.identity.layout.clone();
    drop((store, recorder));

    // Every look with a store that knows nothing yet: cold, but for the host's page cache.
    let time = |id: CheckpointId| {
        let tries = (0..5).map(|_| {
            let store = Arc::new(Store::open(dir.path(), Access::ReadOnly).unwrap());
            let start = Instant::now();
            store.view(id).unwrap();
            start.elapsed()
        });
        tries.min().unwrap()
    };
    let early = kept[1..6].iter().map(|(id, _)| time(*id)).max().unwrap();
    let late = kept[kept.len() - 5..].iter().map(|(id, _)| time(*id)).max().unwrap();
    eprintln!("page map of an early checkpoint {early:?}, of a late one {late:?}");
    assert!(late < early * 4 + Duration::from_millis(5), "early {early:?}, late {late:?}");

    let store = crate::toy::open(dir.path());
    let mut recorder = retrovisor_snapshot::Recorder::new(store, machine).unwrap();
    for (id, hash) in [kept[0], kept[kept.len() / 2], kept[kept.len() - 1]] {
        let mut toy = Toy::new(&layout);
        recorder.restore(&mut toy, id, &RollbackRequest::default()).unwrap();
        assert_eq!(image_hash(&toy).unwrap(), hash);
    }
}
