//! What differs, and who fills memory, as people see it.

use retrovisor_tests::{Daemon, GuestImage};

#[test]
fn differences_and_owners_of_memory_are_printed() {
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    daemon.run_guest(&image, "0ms");
    for label in ["one", "two"] {
        let _ = daemon.next_tick();
        let _taken = daemon.run(&["checkpoint", "g", "--label", label]).ok();
    }
    let output = daemon.run(&["diff", "g", "one", "two"]).ok().stdout;
    for title in ["Structures", "Memory of processes", "Whose pages changed"] {
        assert!(output.contains(title), "{title} is missing: {output}");
    }
    assert!(output.contains("(workload)"), "the workload is not named: {output}");
    // Where nobody says how wide it is, a line has 80 characters; the two checkpoints on top may be longer.
    let wide: Vec<_> = output.lines().skip(2).filter(|line| line.chars().count() > 80).collect();
    assert!(wide.is_empty(), "too wide: {wide:#?}");

    let output = daemon.run(&["inspect", "g", "memory", "--at", "two"]).ok().stdout;
    assert!(output.contains("What fills memory") && output.contains("Largest owners"), "{output}");
    let kinds = output.split("What fills memory").nth(1).unwrap().split("Largest owners").next().unwrap();
    let pages = kinds.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    assert_eq!(pages.sum::<u64>(), (512 << 20) / 4096, "every frame has one owner: {kinds}");
}
