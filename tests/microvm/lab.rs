use std::path::Path;
use std::process::Command;

use retrovisor_guest::Accelerator;
use retrovisor_machine::accelerator;
use retrovisor_tests::{GuestImage, command_path};

/// Booted beside the guest's own kernel where the run is not told which.
const OTHER_KERNEL: &str = "bullseye-cloud";
/// Set in the lab.
const IN_THE_LAB: &str = "RETROVISOR_LAB";

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
    let ran = Command::new(script)
        .arg(std::env::current_exe().unwrap())
        .env("LAB_KERNELS", there.join(" "))
        .env("LAB_FILES", command_path())
        .args(["--test-threads=1", "--nocapture", "--skip", "all_of_it_in_the_lab"])
        .output()
        .unwrap();
    let (out, error) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    println!("{out}{error}");
    assert!(ran.status.success(), "the lab says {}", ran.status);
    assert!(out.contains("test result: ok") && !out.contains("SKIPPED"), "nothing was tested");
}
