//! The peer: stock QEMU's `snapshot-save` and `snapshot-load` of the same guest under the same load.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use retrovisor_tests::{GuestImage, Measured, wait_until};
use serde_json::{Value, json};

const ROUNDS: usize = 8;

/// Adds `peer.save_ms`, `peer.load_ms` and `peer.stored_bytes`.
pub(crate) fn measure(image: &GuestImage, dir: &Path, measured: &mut Measured) {
    let disk = dir.join("peer.qcow2");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .arg(&image.disk)
        .arg(&disk)
        .status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: the peer needs qemu-img");
        return;
    }
    let mut peer = Peer::start(image, dir, &disk);
    let size = || std::fs::metadata(&disk).unwrap().len();
    for round in 0..ROUNDS {
        std::thread::sleep(Duration::from_secs(1));
        let before = size();
        let tag = format!("t{round}");
        let began = Instant::now();
        peer.job("snapshot-save", &tag);
        measured.add("peer.save_ms", "ms", began.elapsed().as_secs_f64() * 1000.0);
        measured.add("peer.stored_bytes", "bytes", (size() - before) as f64);
        std::thread::sleep(Duration::from_millis(500));
        let began = Instant::now();
        peer.job("snapshot-load", &tag);
        measured.add("peer.load_ms", "ms", began.elapsed().as_secs_f64() * 1000.0);
    }
}

struct Peer {
    child: Child,
    qmp: BufReader<UnixStream>,
    jobs: u32,
}

impl Peer {
    fn start(image: &GuestImage, dir: &Path, disk: &Path) -> Self {
        let (qmp, console) = (dir.join("peer.qmp"), dir.join("peer.log"));
        let accelerator = retrovisor_machine::accelerator::detect().accelerator.to_string();
        let (accelerator, cpu) =
            if accelerator == "kvm" { ("kvm", "host") } else { ("tcg,thread=multi", "max") };
        let child = Command::new("qemu-system-x86_64")
            .args(["-M", "q35", "-m", "512", "-smp", "2", "-nodefaults", "-display", "none"])
            .args(["-accel", accelerator, "-cpu", cpu])
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
            .args([
                "-blockdev",
                &format!("driver=qcow2,node-name=d0,file.driver=file,file.filename={}", disk.display()),
            ])
            .args(["-device", "virtio-blk-pci,drive=d0"])
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&image.initrd)
            .stdout(Stdio::null())
            .spawn()
            .expect("QEMU starts");
        wait_until("the peer's third tick line", Duration::from_mins(1), || {
            std::fs::read_to_string(&console).is_ok_and(|text| text.matches("tick ").count() >= 3)
        });
        let mut peer = Self { child, qmp: BufReader::new(UnixStream::connect(qmp).unwrap()), jobs: 0 };
        peer.execute(&json!({ "execute": "qmp_capabilities" }));
        peer
    }

    /// Runs a snapshot job to its end.
    fn job(&mut self, command: &str, tag: &str) {
        self.jobs += 1;
        let id = format!("j{}", self.jobs);
        self.execute(&json!({
            "execute": command,
            "arguments": { "job-id": id, "tag": tag, "vmstate": "d0", "devices": ["d0"] },
        }));
        loop {
            let message = self.read();
            if message["event"] == "JOB_STATUS_CHANGE" && message["data"]["status"] == "concluded" {
                break;
            }
        }
        let jobs = self.execute(&json!({ "execute": "query-jobs" }));
        assert!(jobs["return"][0]["error"].is_null(), "{jobs}");
        self.execute(&json!({ "execute": "job-dismiss", "arguments": { "id": id } }));
    }

    /// Sends a command and reads up to its answer.
    fn execute(&mut self, command: &Value) -> Value {
        self.qmp.get_mut().write_all(format!("{command}\n").as_bytes()).unwrap();
        loop {
            let message = self.read();
            assert!(message["error"].is_null(), "{command}: {message}");
            if !message["return"].is_null() {
                return message;
            }
        }
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.qmp.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Ended already: nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
