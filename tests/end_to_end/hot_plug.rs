//! Devices, memory, vCPUs and media that come to a running QEMU and go: refused by name until all is as before.

use std::path::Path;
use std::time::Duration;

use retrovisor_tests::{Daemon, ForeignOptions, ForeignQemu, GuestImage, Owner, wait_until};
use serde_json::json;

/// A machine that is attached under the name `g`, and its owner.
struct Attached {
    daemon: Daemon,
    qemu: ForeignQemu,
    owner: Owner,
}

impl Attached {
    /// Starts QEMU, attaches it, and takes the checkpoint `before`.
    fn start(image: &GuestImage, store: &Path, dir: &Path, arguments: &[&str]) -> Self {
        let qemu = ForeignQemu::start_with(&ForeignOptions::small(image, dir), arguments);
        let (owner, daemon) = (qemu.owner(), Daemon::start(store));
        qemu.next_tick();
        let _attached = daemon.run(&["attach", "g", "--qmp", &qemu.qmp(), "--every", "0"]).ok();
        let _before = daemon.json(&["checkpoint", "g", "--label", "before"]);
        Self { daemon, qemu, owner }
    }

    /// A vCPU was unplugged from a QEMU that cannot save its state after that.
    fn must_refuse_after_unplug(&mut self, arguments: &[&str]) {
        let refused = self.daemon.run(arguments);
        assert!(refused.code != 0 && refused.stderr.contains("after a vCPU was removed"), "{refused:#?}");
        self.qemu.next_tick();
    }

    /// Neither a checkpoint nor a rollback is begun, both name the change, and the guest does not notice.
    fn must_refuse(&mut self, named: &str) {
        let snapshots = self.owner.additions().len();
        let count = self.daemon.json(&["show", "g"])["checkpoints"].clone();
        for refused in [&["checkpoint", "g"][..], &["rollback", "g", "--to", "before"]] {
            let refused = self.daemon.run(refused);
            assert!(refused.code != 0 && refused.stderr.contains(named), "{named}: {refused:#?}");
            assert!(refused.stderr.contains("Undo the change in QEMU"), "{refused:#?}");
        }
        assert_eq!(self.daemon.json(&["show", "g"])["checkpoints"], count, "{named}");
        assert_eq!(self.owner.additions().len(), snapshots, "{named}: something of the attempts is left");
        assert_eq!(self.daemon.state("g"), "running");
        self.qemu.next_tick();
    }

    /// All is as before.
    fn must_work(&mut self) {
        let _made = self.daemon.json(&["checkpoint", "g"]);
        let back = self.daemon.json(&["rollback", "g", "--to", "before", "--verify-image"]);
        assert_eq!(back["rollback"]["image_matches"], true, "{back:#}");
        self.qemu.next_tick();
    }

    /// Removes a device, with the guest's help.
    fn unplug(&mut self, name: &str) {
        let owner = &mut self.owner;
        wait_until(&format!("{name} to be unplugged"), Duration::from_mins(1), || {
            // It is asked for again until the guest, which may be busy, has released it.
            let _asked = owner.tried("device_del", &json!({ "id": name }));
            std::thread::sleep(Duration::from_millis(200));
            !owner.devices().iter().any(|device| device == name)
        });
    }
}

#[test]
fn what_is_plugged_or_unplugged_is_refused_by_name_until_it_is_as_before() {
    let Some(image) = GuestImage::find() else { return };
    let (store, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let arguments = [
        "-m",
        "256M,slots=2,maxmem=1G",
        "-action",
        "shutdown=pause",
        "-device",
        "pcie-root-port,id=root0,chassis=1",
        "-device",
        "pcie-root-port,id=root1,chassis=2",
        "-device",
        "ide-cd,id=cd",
        "-device",
        "virtio-rng-pci,id=rng,bus=root1",
    ];
    let mut attached = Attached::start(&image, store.path(), dir.path(), &arguments);

    // A disk is added, and goes again.
    let extra = dir.path().join("extra.qcow2");
    let mut create = std::process::Command::new("qemu-img");
    assert!(create.args(["create", "-q", "-f", "qcow2"]).arg(&extra).arg("8M").status().unwrap().success());
    let file = json!({ "driver": "file", "filename": extra });
    let node = json!({ "driver": "qcow2", "node-name": "extra", "file": file });
    let _nothing = attached.owner.run("blockdev-add", &node);
    let disk = json!({ "driver": "virtio-blk-pci", "id": "extra", "drive": "extra", "bus": "root0" });
    let _nothing = attached.owner.run("device_add", &disk);
    wait_until("the guest to see the disk", Duration::from_secs(30), || {
        attached.qemu.shell("ls /dev/vdb 2>/dev/null").contains("vdb")
    });
    let _written = attached.qemu.shell("dd if=/dev/urandom of=/dev/vdb bs=64k count=4 2>/dev/null; sync");
    attached.must_refuse("extra (virtio-blk-pci) was added");
    attached.unplug("extra");
    attached.must_work();

    // A device that was there before goes, and another one of its name comes.
    attached.unplug("rng");
    attached.must_refuse("rng (virtio-rng-pci) was removed");
    let rng = json!({ "driver": "virtio-rng-pci", "id": "rng", "bus": "root1" });
    let _nothing = attached.owner.run("device_add", &rng);
    attached.must_work();

    // A medium, without a device.
    let medium = json!({ "id": "cd", "filename": image.disk, "format": "raw" });
    let _nothing = attached.owner.run("blockdev-change-medium", &medium);
    attached.must_refuse("of cd was added");
    let _nothing = attached.owner.run("eject", &json!({ "id": "cd", "force": true }));
    attached.must_work();

    new_shape_after_an_attach(attached);
}

#[test]
fn a_vcpu_that_is_plugged_is_refused_until_it_is_unplugged() {
    let Some(image) = GuestImage::find() else { return };
    let (store, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let arguments = ["-smp", "1,maxcpus=2"];
    let mut attached = Attached::start(&image, store.path(), dir.path(), &arguments);
    let vcpus = attached.owner.run("query-hotpluggable-cpus", &json!({}));
    let free = vcpus.as_array().unwrap().iter().find(|vcpu| vcpu["qom-path"].is_null()).unwrap();
    let mut vcpu = free["props"].clone();
    vcpu["driver"] = free["type"].clone();
    vcpu["id"] = json!("cpu1");
    let _nothing = attached.owner.run("device_add", &vcpu);
    attached.must_refuse("cpu1 (max-x86_64-cpu) was added");
    attached.unplug("cpu1");
    let version = attached.owner.run("query-version", &json!({}))["qemu"]["major"].clone();
    if version.as_u64().unwrap() >= 10 {
        attached.must_work();
        return;
    }
    // Older ones never finish saving a state after that: the guest would stand still for ever.
    attached.must_refuse_after_unplug(&["checkpoint", "g"]);
    assert_eq!(attached.daemon.json(&["detach", "g"])["left_behind"], json!([]));
    let qmp = attached.qemu.qmp();
    attached.must_refuse_after_unplug(&["attach", "g", "--qmp", &qmp]);
}

/// An attach accepts the devices that are there then; states of earlier ones are refused before a byte is written.
fn new_shape_after_an_attach(mut attached: Attached) {
    let late = json!({ "driver": "virtio-rng-pci", "id": "late", "bus": "root0" });
    let _nothing = attached.owner.run("device_add", &late);
    attached.must_refuse("late (virtio-rng-pci) was added");
    let left = attached.daemon.json(&["detach", "g"])["left_behind"].clone();
    assert_eq!(left, json!([]));
    assert_eq!(attached.owner.additions(), [""; 0]);
    let qmp = attached.qemu.qmp();
    let attach = ["attach", "g", "--qmp", &qmp, "--every", "0"];
    let _attached = attached.daemon.run(&attach).ok();
    let _made = attached.daemon.json(&["checkpoint", "g", "--label", "later"]);
    let refused = attached.daemon.run(&["rollback", "g", "--to", "before"]);
    let named = "late (virtio-rng-pci) was added";
    assert!(refused.code == 4 && refused.stderr.contains(named), "{refused:#?}");
    let back = attached.daemon.json(&["rollback", "g", "--to", "later", "--verify-image"]);
    assert_eq!(back["rollback"]["image_matches"], true, "{back:#}");
    attached.qemu.next_tick();

    // A guest that ended goes back in place without a checkpoint of its own before: nothing may be written either.
    let halted = attached.qemu.send("echo o >/proc/sysrq-trigger");
    attached.daemon.wait_for("g", "powered off");
    drop(halted);
    let refused = attached.daemon.run(&["rollback", "g", "--to", "before"]);
    assert!(refused.code == 4 && refused.stderr.contains(named), "{refused:#?}");
    assert_eq!(attached.daemon.state("g"), "powered off", "nothing was written");
    let back = attached.daemon.json(&["rollback", "g", "--to", "later", "--verify-image"]);
    assert_eq!(back["rollback"]["image_matches"], true, "{back:#}");
    attached.qemu.next_tick();

    // A DIMM, which no attach accepts.
    let memory = json!({ "qom-type": "memory-backend-ram", "id": "mem1", "size": 128 << 20 });
    let _nothing = attached.owner.run("object-add", &memory);
    let dimm = json!({ "driver": "pc-dimm", "id": "dimm1", "memdev": "mem1" });
    let _nothing = attached.owner.run("device_add", &dimm);
    let refused = attached.daemon.run(&["checkpoint", "g"]);
    assert!(refused.code != 0 && refused.stderr.contains("dimm1 (pc-dimm) was added"), "{refused:#?}");
    attached.qemu.next_tick();
    let _left = attached.daemon.json(&["detach", "g"]);
    let refused = attached.daemon.run(&attach);
    assert!(refused.code != 0 && refused.stderr.contains("dimm1"), "{refused:#?}");
    assert_eq!(attached.daemon.state("g"), "detached");
    assert_eq!(attached.owner.additions(), [""; 0]);
    attached.qemu.next_tick();
}
