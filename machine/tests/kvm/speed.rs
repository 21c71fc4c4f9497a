use crate::bare;
use retrovisor_guest::{ClockPolicy, Gpa, Machine as _, MemoryLayout, PageSet};
use std::time::Instant;
#[test]
#[ignore = "x"]
fn speed() {
    for vcpus in [1u32, 2] {
        let layout = MemoryLayout::flat(1 << 30).unwrap();
        let Some(mut machine) = bare::launch(layout.clone(), vcpus) else { return };
        bare::tell(&mut machine, Gpa(0x20_0000), 100, 4096);
        machine.resume().unwrap();
        bare::wait_rounds(&machine, u64::from(vcpus), 5);
        let mut dirty = PageSet::empty(&layout);
        let mut t: Vec<Vec<f64>> = vec![vec![]; 6];
        for _ in 0..300 {
            std::thread::sleep(std::time::Duration::from_millis(2));
            let a = Instant::now();
            machine.pause().unwrap();
            t[0].push(a.elapsed().as_secs_f64() * 1e6);
            let b = Instant::now();
            dirty.clear();
            machine.take_dirty(&mut dirty).unwrap();
            t[1].push(b.elapsed().as_secs_f64() * 1e6);
            let b = Instant::now();
            let state = machine.capture_state().unwrap();
            t[2].push(b.elapsed().as_secs_f64() * 1e6);
            let b = Instant::now();
            machine.apply_state(&state, ClockPolicy::StandStill).unwrap();
            t[3].push(b.elapsed().as_secs_f64() * 1e6);
            let b = Instant::now();
            machine.resume().unwrap();
            t[4].push(b.elapsed().as_secs_f64() * 1e6);
            t[5].push(a.elapsed().as_secs_f64() * 1e6);
        }
        for (n, v) in ["pause", "dirty", "capture", "apply", "resume", "all"].iter().zip(&mut t) {
            v.sort_by(f64::total_cmp);
            println!("{vcpus} {n:>8} p50 {:8.1} p90 {:8.1}", v[150], v[270]);
        }
    }
}
