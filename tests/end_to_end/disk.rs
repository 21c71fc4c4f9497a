//! Disks go back with the memory.

use retrovisor_tests::{Daemon, GuestImage};

#[test]
fn a_file_written_after_the_checkpoint_is_gone_after_the_rollback() {
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    daemon.run_guest(&image, "500ms");
    // Direct reads of the block device show the disk itself, not the guest's page cache, which lies in memory.
    let disk = "dd if=/dev/vda bs=1M iflag=direct 2>/dev/null | sha256sum";
    let _said = daemon.shell("echo before > /data/letter; sync");
    let _made = daemon.json(&["checkpoint", "g", "--label", "before"]);
    let _said = daemon.shell(
        "echo after > /data/letter; dd if=/dev/urandom of=/data/noise bs=1M count=8 2>/dev/null; sync",
    );
    assert_eq!(daemon.shell("cat /data/letter").trim(), "after");
    let after = daemon.shell(disk);
    let went = daemon.json(&["rollback", "g", "--to", "before", "--verify-image"]);
    assert_eq!(went["move"]["image_matches"], true);
    assert_eq!(daemon.shell("echo 3 > /proc/sys/vm/drop_caches; cat /data/letter").trim(), "before");
    assert_eq!(daemon.shell("ls /data/noise 2>&1 | grep -c 'No such file'").trim(), "1");
    assert_ne!(daemon.shell(disk), after);
    let _tick = daemon.next_tick();
    let undone = daemon.json(&["undo", "g", "--verify-image"]);
    assert_eq!(undone["move"]["image_matches"], true);
    assert_eq!(daemon.shell("echo 3 > /proc/sys/vm/drop_caches; cat /data/letter").trim(), "after");
    let _tick = daemon.next_tick();
}
