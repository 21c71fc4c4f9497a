use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use retrovisor_guest::Accelerator;
use retrovisor_machine::accelerator;
use retrovisor_tests::{GuestImage, command_path};

/// Booted beside the guest's own kernel where the run is not told which.
const OTHER_KERNEL: &str = "bullseye-cloud";
/// Set in the lab.
const IN_THE_LAB: &str = "RETROVISOR_LAB";
/// Asks for the long run.
const LONG: &str = "RETROVISOR_LAB_LONG";
/// Memory of the lab in a long run: it has a guest with more than 3 GiB.
const LONG_MEMORY_MIB: &str = "7168";

/// Whether this is the long run. Where it is not, says what is left to it.
pub(crate) fn is_long(what: &str) -> bool {
    let is_long = std::env::var_os(LONG).is_some();
    if !is_long {
        println!("left to the long run (make test-lab): {what}");
    }
    is_long
}

/// A kernel of `setup/kernels.sh`.
pub(crate) struct OtherKernel {
    pub(crate) name: String,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

/// The other kernels that are here, by name.
pub(crate) fn other_kernels() -> Vec<OtherKernel> {
    let image = GuestImage::files().unwrap();
    let folder = image.kernel.parent().and_then(Path::parent).unwrap().join("kernels");
    let folders = std::fs::read_dir(folder).map_or_else(|_| Vec::new(), |all| all.flatten().collect());
    let mut kernels: Vec<_> = folders
        .into_iter()
        .map(|folder| OtherKernel {
            name: folder.file_name().to_string_lossy().into_owned(),
            kernel: folder.path().join("vmlinuz"),
            initrd: folder.path().join("initramfs.cpio.gz"),
        })
        .filter(|kernel| kernel.kernel.exists())
        .collect();
    kernels.sort_by(|one, other| one.name.cmp(&other.name));
    kernels
}

/// Whether the guests of this program boot right here. Where they do not, [`all_of_it_in_the_lab`] runs them.
pub(crate) fn boots_here() -> bool {
    std::env::var_os(IN_THE_LAB).is_some() || accelerator::detect().accelerator == Accelerator::Kvm
}

/// What kernels must be told in the lab: its processor does not tell KVM when extended state is switched on, so that the size
/// of the state is wrong, on which some of them stumble.
pub(crate) fn append() -> &'static str {
    if std::env::var_os(IN_THE_LAB).is_some() { "noxsave" } else { "" }
}

#[test]
fn all_of_it_in_the_lab() {
    if boots_here() {
        return;
    }
    let Some(image) = GuestImage::find() else { return };
    let kernels = std::env::var("LAB_KERNELS").unwrap_or_else(|_| OTHER_KERNEL.to_owned());
    let cache = image.kernel.parent().and_then(Path::parent).unwrap().join("kernels");
    let (there, absent): (Vec<_>, Vec<_>) =
        kernels.split_whitespace().partition(|kernel| cache.join(kernel).join("vmlinuz").exists());
    for kernel in absent {
        eprintln!("SKIPPED: there is no kernel {kernel}: setup/kernels.sh gets it");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../setup/lab.sh");
    let mut lab = Command::new(script);
    if std::env::var_os(LONG).is_some() {
        lab.env("LAB_MEMORY_MIB", LONG_MEMORY_MIB);
    }
    let mut lab = lab
        .arg(std::env::current_exe().unwrap())
        .env("LAB_KERNELS", there.join(" "))
        .env("LAB_FILES", command_path())
        .args(["--test-threads=1", "--nocapture", "--skip", "all_of_it_in_the_lab"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It is shown as it comes: a long run takes most of an hour.
    let mut out = String::new();
    for line in BufReader::new(lab.stdout.take().unwrap()).split(b'\n') {
        let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
        println!("{line}");
        out.push_str(&line);
        out.push('\n');
    }
    let status = lab.wait().unwrap();
    assert!(status.success(), "the lab says {status}");
    assert!(out.contains("test result: ok") && !out.contains("SKIPPED"), "nothing was tested");
}
