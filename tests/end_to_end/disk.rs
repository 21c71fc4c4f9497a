//! Disks go back with the memory.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use retrovisor_snapshot::{Access, Store};
use retrovisor_tests::{Daemon, GuestImage, wait_until};

#[test]
fn a_file_written_after_the_checkpoint_is_gone_after_the_rollback() {
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    daemon.run_guest(&image, "500ms");
    // Direct reads of the block device show the disk itself, not the guest's page cache, which is in memory.
    let disk = "dd if=/dev/vda bs=1M iflag=direct 2>/dev/null | sha256sum";
    let _said = daemon.shell("echo before > /data/letter; sync");
    let _made = daemon.json(&["checkpoint", "g", "--label", "before"]);
    let _said = daemon.shell(
        "echo after > /data/letter; dd if=/dev/urandom of=/data/noise bs=1M count=8 2>/dev/null; sync",
    );
    assert_eq!(daemon.shell("cat /data/letter").trim(), "after");
    let after = daemon.shell(disk);
    let went = daemon.json(&["rollback", "g", "--to", "before", "--verify-image"]);
    assert_eq!(went["rollback"]["image_matches"], true);
    assert_eq!(daemon.shell("echo 3 > /proc/sys/vm/drop_caches; cat /data/letter").trim(), "before");
    assert_eq!(daemon.shell("ls /data/noise 2>&1 | grep -c 'No such file'").trim(), "1");
    assert_ne!(daemon.shell(disk), after);
    let _tick = daemon.next_tick();
    let undone = daemon.json(&["undo", "g", "--verify-image"]);
    assert_eq!(undone["rollback"]["image_matches"], true);
    assert_eq!(daemon.shell("echo 3 > /proc/sys/vm/drop_caches; cat /data/letter").trim(), "after");
    let _tick = daemon.next_tick();
    // The same with a guest that runs on before what it leaves is on the disk.
    let staged = daemon.json(&["rollback", "g", "--to", "before", "--current", "staged"]);
    assert_eq!(daemon.shell("echo 3 > /proc/sys/vm/drop_caches; cat /data/letter").trim(), "before");
    let present = staged["rollback"]["current"]["name"].as_str().unwrap();
    let back = daemon.json(&["rollback", "g", "--to", present, "--verify-image"]);
    assert_eq!(back["rollback"]["image_matches"], true, "what was left is whole: {staged} {back}");
    assert_eq!(daemon.shell("echo 3 > /proc/sys/vm/drop_caches; cat /data/letter").trim(), "after");
    println!(
        "rolled back durably in {} us, staged in {} us",
        went["rollback"]["rollback_us"], staged["rollback"]["rollback_us"]
    );
}

/// The guest's `/data` at a checkpoint, by itself: the disk out of the store, checked by e2fsck.
fn check_file_system(store: &Path, machine: &str, label: &str, image: &GuestImage) {
    let store = Arc::new(Store::open(store, Access::ReadOnly).unwrap());
    let machine = store.catalogue().machine(machine).unwrap().id;
    let checkpoint = store.catalogue().resolve(machine, label).unwrap().id;
    let disk = store.disk(checkpoint, "d0").unwrap();
    assert!(disk.written().count() > 0);
    let base = std::fs::File::open(&image.disk).unwrap();
    let raw = tempfile::NamedTempFile::new().unwrap();
    let mut out = raw.reopen().unwrap();
    disk.export(&mut out, &mut |block, page| {
        page.fill(0);
        base.read_at(page, block * 4096).map(drop)
    })
    .unwrap();
    assert_eq!(raw.as_file().metadata().unwrap().len(), disk.record().size_bytes);
    let Ok(checked) = Command::new("/sbin/e2fsck").args(["-fy"]).arg(raw.path()).output() else {
        eprintln!("SKIPPED in part: e2fsck (package e2fsprogs) is not installed");
        return;
    };
    // The guest had it mounted: its journal is replayed, and the superblock's sums, which ext4 writes when it is
    // unmounted, are computed again. Nothing else has to be repaired.
    let said = String::from_utf8_lossy(&checked.stdout);
    let sums = ["Free blocks count wrong (", "Free inodes count wrong ("];
    let repaired = said.matches("? yes").count();
    let counted = sums.iter().filter(|sum| said.contains(*sum)).count();
    assert!(checked.status.code().is_some_and(|code| code <= 1) && repaired == counted, "{said}");
}

#[test]
fn a_machine_whose_folder_is_lost_comes_back_with_its_disk_from_the_store() {
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    daemon.run_guest(&image, "1s");
    let fill = "cd /data && for i in 1 2 3 4 5 6; do dd if=/dev/urandom of=f$i bs=64k count=12 2>/dev/null; done; \
                cp f1 copy; sha256sum f? copy > sums; sync; tail -n 1 sums";
    assert!(daemon.shell(fill).contains("copy"));
    let _made = daemon.json(&["checkpoint", "g", "--label", "filled"]);
    let damage = "cd /data && for i in 1 2 3; do dd if=/dev/zero of=f$i bs=64k count=12 2>/dev/null; done; rm f5; sync; \
                 sha256sum -c sums 2>/dev/null | grep -c OK";
    assert_eq!(daemon.shell(damage).trim(), "3");
    let _stopped = daemon.run(&["stop", "g"]).ok();
    check_file_system(store.path(), "g", "filled", &image);
    std::fs::remove_dir_all(store.path().join("machines/g")).unwrap();

    let look = "echo 3 > /proc/sys/vm/drop_caches; cd /data && sha256sum -c sums 2>/dev/null | grep -c OK";
    let went = daemon.json(&["rollback", "g", "--to", "filled", "--verify-image"]);
    assert_eq!(went["rollback"]["image_matches"], true);
    assert_eq!(daemon.shell(look).trim(), "7");
    assert_eq!(daemon.shell("dmesg | grep -ci 'EXT4-fs error'").trim(), "0");
    let _tick = daemon.next_tick();
    // It goes on from there, and back to what came after, in place.
    let _made = daemon.json(&["checkpoint", "g", "--label", "again"]);
    assert_eq!(daemon.shell(damage).trim(), "3");
    let _back = daemon.json(&["rollback", "g", "--to", "again", "--verify-image"]);
    assert_eq!(daemon.shell(look).trim(), "7");
    let verified = daemon.run(&["verify"]).ok();
    assert!(!verified.stdout.contains("damaged:"), "{}", verified.stdout);
}

/// Neither the guest's writes and trims nor rollbacks make the audit suspect the driver, on a real QEMU.
#[test]
fn the_audit_of_a_disk_that_a_guest_writes_finds_nothing() {
    let Some(image) = GuestImage::find() else { return };
    let store = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(store.path());
    daemon.run_guest(&image, "200ms");
    // Large and small files that come and go, so that blocks of clusters are written, copied and trimmed.
    let work = "(while :; do for i in 1 2 3 4; do dd if=/dev/urandom of=/data/w$i bs=3k count=70; sync; done; \
                dd if=/dev/zero of=/data/w1 bs=64k count=20; rm -f /data/w2; fstrim /data; sync; sleep 0.2; done) \
                >/dev/null 2>&1 & echo BEGUN";
    assert!(daemon.shell(work).contains("BEGUN"));
    let _made = daemon.json(&["checkpoint", "g", "--label", "early"]);
    let disk = || daemon.json(&["show", "g"])["audit"]["disks"][0].clone();
    wait_until("the whole disk to be compared once", Duration::from_mins(2), || {
        let disk = disk();
        disk["total_blocks"].as_u64().is_some_and(|total| disk["proven_blocks"].as_u64() == Some(total))
    });
    for label in ["early", "late"] {
        let _gone = daemon.json(&["rollback", "g", "--to", label]);
        let _tick = daemon.next_tick();
        if label == "early" {
            let _made = daemon.json(&["checkpoint", "g", "--label", "late"]);
        }
        let _made = daemon.json(&["checkpoint", "g"]);
    }
    let audit = daemon.json(&["audit", "g"]);
    let whole = &audit["disks"][0];
    assert_eq!((&whole["disk"], &whole["not_compared"]), (&"d0".into(), &"".into()), "{audit:#}");
    assert_eq!(whole["compared_blocks"], whole["total_blocks"], "{audit:#}");
    assert_eq!(
        (&whole["mismatched_blocks"], &audit["mismatched_pages"]),
        (&0.into(), &0.into()),
        "{audit:#}"
    );
    assert_eq!(disk()["mismatched_blocks"], 0);
    let shown = daemon.run(&["show", "g"]).ok().stdout;
    assert!(shown.contains("100 % of d0 proven since"), "{shown}");
    let listed = daemon.run(&["log", "g"]).ok().stdout;
    assert!(!listed.contains("doubtful"), "{listed}");
}
