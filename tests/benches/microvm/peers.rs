//! What others need for the same, measured on such a machine (two cores, a KVM without hardware support), with such a
//! guest (1 GiB, 960 MiB touched, one word a page): medians of five in ms, files in memory.

/// Name, and figures for 0, 1,000, 10,000 and 100,000 pages.
const PEERS: [(&str, [Option<f64>; 4]); 10] = [
    ("Firecracker v1.16.1, Diff, fresh file", [Some(0.98), Some(2.35), Some(16.1), Some(142.0)]),
    ("  the same, every second page", [None, Some(3.8), Some(31.6), Some(293.0)]),
    ("Firecracker v1.16.1, rollback (new process)", [Some(31.5), Some(26.6), Some(28.7), Some(48.4)]),
    ("  the guest's same work after it", [Some(0.2), Some(5.8), Some(55.8), Some(557.0)]),
    ("  the guest's same work, hot", [Some(0.4), Some(3.3), Some(32.0), Some(300.0)]),
    ("Cloud Hypervisor v53.0, snapshot (always full)", [Some(407.0), Some(388.0), Some(378.0), Some(382.0)]),
    ("Cloud Hypervisor v53.0, rollback on demand", [Some(23.8), Some(13.5), Some(21.2), Some(41.4)]),
    ("snapchange c6111ac, reset in place", [Some(0.062), Some(0.52), Some(5.5), Some(40.7)]),
    ("  the same, every second page", [None, Some(0.55), Some(6.2), Some(61.5)]),
    ("VM-µCheckpoint: 6.3 % slowdown at 50 ms (published)", [None; 4]),
];

pub(crate) fn print() {
    println!("\nothers, in ms {:>43} {:>8} {:>8} {:>8}", "0", "1,000", "10,000", "100,000");
    for (name, figures) in PEERS {
        print!("{name:<52}");
        for figure in figures {
            figure.map_or_else(|| print!("{:>9}", ""), |figure| print!("{figure:>9}"));
        }
        println!();
    }
    println!("goals: pause ≤ 120 µs at 100 pages, ≤ 600 µs at 1,000, ≤ 500 µs at 10,000 with pre-copy;");
    println!(
        "rollback ≤ 60 µs at 0 pages, ≤ 450 µs at 1,000, ≤ 4.5 ms at 10,000; branch ≤ 2 ms; slowdown ≤ 3 %"
    );
}
