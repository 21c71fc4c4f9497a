use std::path::Path;
use std::process::Command;

use retrovisor_guest::Accelerator;
use retrovisor_machine::accelerator;
use retrovisor_tests::GuestImage;

/// Set in the lab.
const IN_THE_LAB: &str = "RETROVISOR_LAB";

/// Whether the guests of this program boot right here. Where they do not, [`all_of_it_in_the_lab`] runs them.
pub(crate) fn boots_here() -> bool {
    std::env::var_os(IN_THE_LAB).is_some() || accelerator::detect().accelerator == Accelerator::Kvm
}

#[test]
fn all_of_it_in_the_lab() {
    if boots_here() || GuestImage::find().is_none() {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../setup/lab.sh");
    let ran = Command::new(script)
        .arg(std::env::current_exe().unwrap())
        .args(["--test-threads=1", "--nocapture", "--skip", "all_of_it_in_the_lab"])
        .output()
        .unwrap();
    let (out, error) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    println!("{out}{error}");
    assert!(ran.status.success(), "the lab says {}", ran.status);
    assert!(out.contains("test result: ok") && !out.contains("SKIPPED"), "nothing was tested");
}
