//! The test's guest as a libvirt domain.

use std::path::{Path, PathBuf};
use std::time::Duration;

use retrovisor_tests::{GuestImage, wait_until};
use serde_json::{Value, json};

use crate::libvirtd::Libvirtd;

const NAME: &str = "guest";
/// The user of QEMU: see `setup/libvirtd.sh`.
const QEMU_USER: u32 = 64055;

/// A domain of shared memory with one qcow2 disk and a second monitor.
pub(crate) struct Domain {
    libvirtd: Libvirtd,
    dir: PathBuf,
}

impl Domain {
    /// Defines and starts it, and waits until the guest's workload ticks. `memory` is libvirt's source of the memory.
    pub(crate) fn start(libvirtd: Libvirtd, image: &GuestImage, memory: &str) -> Self {
        let dir = libvirtd.path("domain");
        std::fs::create_dir(&dir).expect("the domain's folder");
        std::os::unix::fs::chown(&dir, Some(QEMU_USER), Some(QEMU_USER)).expect("its owner");
        std::fs::copy(&image.kernel, dir.join("vmlinuz")).expect("the kernel");
        std::fs::copy(&image.initrd, dir.join("initramfs")).expect("the initial RAM file system");
        let made = std::process::Command::new("qemu-img")
            .args(["convert", "-O", "qcow2"])
            .args([&image.disk, &dir.join("disk.qcow2")])
            .status();
        assert!(made.expect("qemu-img starts").success());
        std::fs::write(dir.join("domain.xml"), definition(&dir, memory)).expect("the definition");
        let domain = Self { libvirtd, dir };
        domain.virsh(&["define", &domain.file("domain.xml")]);
        domain.virsh(&["start", NAME]);
        wait_until("the guest's first tick", Duration::from_mins(2), || !domain.ticks(0).is_empty());
        domain
    }

    pub(crate) fn virsh(&self, arguments: &[&str]) -> String {
        self.libvirtd.virsh(arguments)
    }

    /// `virsh save`. One that begins within a job of a checkpoint is cancelled, and has to be given again.
    pub(crate) fn save(&self, file: &str) {
        while let Err(error) = self.libvirtd.try_virsh(&["save", NAME, file]) {
            assert!(error.contains("cancel"), "{error}");
            println!("virsh save was cancelled: {error}");
            let _tick = self.next_tick();
        }
    }

    /// The path of a file in the domain's folder, for arguments.
    pub(crate) fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    pub(crate) fn qmp(&self) -> String {
        self.file("qmp")
    }

    /// A folder for the store.
    pub(crate) fn store(&self) -> PathBuf {
        self.libvirtd.path("store")
    }

    /// Everything that the guest wrote to its console, in all processes.
    pub(crate) fn console(&self) -> String {
        let bytes = std::fs::read(self.dir.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The numbers of the ticks after the first `skip` bytes of the console. The last line may be incomplete.
    fn ticks(&self, skip: usize) -> Vec<u64> {
        let console = self.console();
        assert!(!console.contains("CORRUPT"), "the guest complains:\n{console}");
        let text = console.get(skip..).unwrap_or_default();
        let lines = text[..text.rfind('\n').unwrap_or(0)].lines();
        let number = |line: &str| line.strip_prefix("tick ")?.split(' ').next()?.parse().ok();
        lines.filter_map(number).collect()
    }

    /// Waits for the next tick, and checks that the guest never complained and was booted once.
    pub(crate) fn next_tick(&self) -> u64 {
        let skip = self.console().len();
        wait_until("the guest's next tick", Duration::from_mins(1), || !self.ticks(skip).is_empty());
        assert_eq!(self.console().matches("guest up").count(), 1, "{}", self.console());
        self.ticks(skip)[0]
    }

    pub(crate) fn state(&self) -> String {
        self.virsh(&["domstate", NAME])
    }

    /// Runs a command on libvirt's own monitor.
    fn monitor(&self, command: &str) -> Value {
        let line = json!({ "execute": command }).to_string();
        let answer = self.virsh(&["qemu-monitor-command", NAME, &line]);
        let answer: Value = serde_json::from_str(&answer).expect("QEMU's answer");
        answer["return"].clone()
    }

    /// What an attach may change in QEMU and in the image of the disk.
    pub(crate) fn found(&self) -> Value {
        let nodes = self.monitor("query-named-block-nodes");
        let nodes = nodes.as_array().expect("a list of nodes").iter();
        let nodes: Vec<Value> = nodes
            .map(|node| json!([node["node-name"], node["drv"], node["ro"], node["image"]["snapshots"]]))
            .collect();
        let snapshots = std::process::Command::new("qemu-img")
            .args(["snapshot", "-l", "-U", &self.file("disk.qcow2")])
            .output()
            .expect("qemu-img starts");
        json!({
            "capabilities": self.monitor("query-migrate-capabilities"),
            "parameters": self.monitor("query-migrate-parameters"),
            "descriptor sets": self.monitor("query-fdsets"),
            "jobs": self.monitor("query-jobs"),
            "nodes": nodes,
            "snapshots": String::from_utf8_lossy(&snapshots.stdout),
        })
    }
}

fn definition(dir: &Path, memory: &str) -> String {
    let dir = dir.display();
    format!(
        "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{NAME}</name>
  <memory unit='MiB'>256</memory>
  <memoryBacking>
    <source type='{memory}'/>
    <access mode='shared'/>
  </memoryBacking>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{dir}/vmlinuz</kernel>
    <initrd>{dir}/initramfs</initrd>
    <cmdline>console=ttyS0 quiet tsc=unstable</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='maximum'/>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{dir}/disk.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='file'>
      <source path='{dir}/console.log' append='on'/>
    </serial>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:{dir}/qmp,server=on,wait=off'/>
  </qemu:commandline>
</domain>
"
    )
}
