//! The cost of a restore does not depend on the number of checkpoints or rollbacks: counted in data read, not in time.

use std::sync::Arc;

use retrovisor_snapshot::{
    Access, CheckpointId, CheckpointRequest, Reads, RollbackRequest, Store, image_hash,
};

use crate::toy::{Lab, Toy};

const CHECKPOINTS: u64 = 5_000;
const ROLLBACKS: usize = 200;
const PAGES: u64 = 1_024;
const WRITES: u64 = 20;

#[test]
fn five_thousand_checkpoints_and_two_hundred_rollbacks() {
    let mut lab = Lab::new(PAGES);
    for at in 0..PAGES {
        lab.toy.scribble(usize::try_from(at).unwrap(), at);
    }
    let mut kept: Vec<(CheckpointId, blake3::Hash)> = Vec::new();
    let (mut waiting, mut rollbacks) = (Vec::new(), 0);
    for at in 0..CHECKPOINTS {
        for page in 0..WRITES {
            let index = (at * 37 + page * 101) % PAGES;
            lab.toy.scribble(usize::try_from(index).unwrap(), at * 64 + page % 7);
        }
        let pending = lab.recorder.capture(&mut lab.toy, &CheckpointRequest::default()).unwrap();
        if at % 25 == 0 {
            let id = pending.wait().unwrap().record.id;
            kept.push((id, image_hash(&lab.toy).unwrap()));
            if rollbacks < ROLLBACKS && kept.len() > 1 {
                let back = kept[kept.len() * 2 / 3].0;
                lab.recorder.rollback(&mut lab.toy, back, &RollbackRequest::default()).unwrap();
                rollbacks += 1;
            }
        } else {
            waiting.push(pending);
        }
    }
    let all = waiting.len();
    assert_eq!(waiting.into_iter().filter_map(|pending| pending.wait().ok()).count(), all);
    while rollbacks < ROLLBACKS {
        lab.recorder.undo(&mut lab.toy, &RollbackRequest::default()).unwrap();
        rollbacks += 1;
    }
    let Lab { dir, store, recorder, toy, machine } = lab;
    let layout = toy.identity.layout.clone();
    let total = store.catalogue().checkpoints(machine).unwrap().len() as u64;
    assert_eq!(total, CHECKPOINTS + ROLLBACKS as u64);
    drop((store, recorder));

    // Each measurement with a newly opened store.
    let cost = |id: CheckpointId, hash: blake3::Hash| {
        let store = Arc::new(Store::open(dir.path(), Access::ReadOnly).unwrap());
        assert_eq!(store.image_hash(id).unwrap(), hash);
        store.reads()
    };
    let most = |costs: &[Reads]| Reads {
        frames: costs.iter().map(|cost| cost.frames).max().unwrap(),
        links: costs.iter().map(|cost| cost.links).max().unwrap(),
        changes: costs.iter().map(|cost| cost.changes).max().unwrap(),
        keyframes: costs.iter().map(|cost| cost.keyframes).max().unwrap(),
    };
    let costs: Vec<Reads> = kept.iter().map(|(id, hash)| cost(*id, *hash)).collect();
    let tenth = costs.len() / 10;
    let (early, late) = (most(&costs[tenth..2 * tenth]), most(&costs[costs.len() - tenth..]));
    eprintln!("a cold restore reads at most: early {early:?}, late {late:?}");
    for cost in &costs {
        assert!(cost.links <= 65 && cost.keyframes == 1, "{cost:?}");
        assert!(cost.changes <= 64 * WRITES, "{cost:?}");
        // A frame of a pack never has to be read for more pages than the machine has.
        assert!(cost.frames <= PAGES, "{cost:?}");
    }
    assert!(late.frames <= early.frames * 3 / 2 + 16, "early {early:?}, late {late:?}");

    let store = crate::toy::open(dir.path());
    let mut recorder = retrovisor_snapshot::Recorder::new(store, machine).unwrap();
    for (id, hash) in [kept[0], kept[kept.len() / 2], kept[kept.len() - 1]] {
        let mut toy = Toy::new(&layout);
        recorder.restore(&mut toy, id, &RollbackRequest::default()).unwrap();
        assert_eq!(image_hash(&toy).unwrap(), hash);
    }
}
