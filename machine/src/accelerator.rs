//! What can run a stock Linux guest on this host.

use kvm_ioctls::Kvm;
use retrovisor_guest::Accelerator;

/// The version of the KVM interface that has been stable since Linux 2.6.22.
const KVM_API_VERSION: i32 = 12;

/// An accelerator and the reason for its choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detected {
    /// KVM where it can run stock Linux, else QEMU's translator.
    pub accelerator: Accelerator,
    /// One sentence, with a faster alternative if there is one.
    pub reason: String,
}

/// Checks `/dev/kvm` and the processor's flags.
#[must_use]
pub fn detect() -> Detected {
    let version = Kvm::new().map(|kvm| kvm.get_api_version()).map_err(kvm_ioctls::Error::errno);
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    choose(version, &cpuinfo)
}

/// `kvm` is the interface's version, or the error number of opening it.
fn choose(kvm: Result<i32, i32>, cpuinfo: &str) -> Detected {
    let tcg = |reason: String| Detected { accelerator: Accelerator::Tcg, reason };
    match kvm {
        Ok(KVM_API_VERSION) => match virtualization_flag(cpuinfo) {
            Some(flag) => Detected {
                accelerator: Accelerator::Kvm,
                reason: format!("KVM with hardware virtualization ({flag})"),
            },
            None => tcg("KVM is interpreted: the processor shows no hardware virtualization (no svm or vmx flag), \
                         so stock Linux does not boot under it; guests run translated. For KVM, use a host with \
                         hardware virtualization, or switch nested virtualization on in this one's hypervisor"
                .into()),
        },
        Ok(version) => tcg(format!(
            "KVM has interface version {version}, not {KVM_API_VERSION}; guests run translated. \
             Update the host's kernel for KVM"
        )),
        Err(number) => tcg(match nix::errno::Errno::from_raw(number) {
            nix::errno::Errno::ENOENT => "KVM is absent (no /dev/kvm); guests run translated. For KVM, load the \
                module kvm_intel or kvm_amd, or pass /dev/kvm into this container"
                .into(),
            nix::errno::Errno::EACCES | nix::errno::Errno::EPERM => {
                "no permission to open /dev/kvm; guests run translated. For KVM, add yourself to the group kvm \
                 (sudo usermod -aG kvm $USER, then log in again)"
                    .into()
            }
            other => format!("/dev/kvm does not open ({}); guests run translated", other.desc()),
        }),
    }
}

/// `svm` or `vmx`, when the processor has it.
fn virtualization_flag(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':'))?.1;
    ["svm", "vmx"].into_iter().find(|wanted| flags.split_ascii_whitespace().any(|flag| flag == *wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = "processor\t: 0\nflags\t\t: fpu vme svm_lock nx\nbugs\t\t: svm\n";
    const SVM: &str = "processor\t: 0\nflags\t\t: fpu vme svm nx\n";

    #[test]
    fn kvm_needs_the_device_its_version_and_the_flag() {
        assert_eq!(choose(Ok(12), SVM).accelerator, Accelerator::Kvm);
        for (kvm, cpuinfo, word) in [
            (Ok(12), BARE, "interpreted"),
            (Ok(12), "", "interpreted"),
            (Ok(11), SVM, "version 11"),
            (Err(2), SVM, "absent"),
            (Err(13), SVM, "no permission"),
            (Err(19), SVM, "does not open"),
        ] {
            let detected = choose(kvm, cpuinfo);
            assert_eq!(detected.accelerator, Accelerator::Tcg);
            assert!(detected.reason.contains(word), "{}", detected.reason);
        }
    }

    #[test]
    fn this_host_gets_an_answer() {
        let detected = detect();
        assert!(matches!(detected.accelerator, Accelerator::Kvm | Accelerator::Tcg));
        assert!(!detected.reason.is_empty());
    }
}
