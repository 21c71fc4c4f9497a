use crate::{Arguments, Error, Fault, Parameter, Patch, Plan, Target};

/// Bound on the system call numbers that x86-64 has assigned so far.
const SYSCALLS_MAX: u32 = 600;

/// Makes a system call run the kernel function of another, in `sys_call_table` and, in kernels that dispatch through
/// `x64_sys_call`, in the call there.
pub(crate) struct SyscallRedirect;

impl Fault for SyscallRedirect {
    fn name(&self) -> &'static str {
        "syscall-redirect"
    }

    fn doc(&self) -> &'static str {
        "Makes a system call run the kernel function of another"
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[
            Parameter {
                name: "syscall",
                unit: "",
                doc: "the system call to redirect, named as in `man 2 syscalls`",
                default: Some("getppid"),
            },
            Parameter {
                name: "to",
                unit: "",
                doc: "the system call that runs in its place",
                default: Some("getuid"),
            },
        ]
    }

    fn expected(&self) -> &'static str {
        "the invariant syscall_redirected is violated for the call in the next checkpoint; text_changed as well where \
         the kernel dispatches through x64_sys_call"
    }

    fn plan(&self, target: &Target, arguments: &Arguments) -> Result<Plan, Error> {
        let (from, to) = (arguments.text("syscall")?, arguments.text("to")?);
        let kernel = target.kernel()?;
        let unknown = |name: &str| Error::NoSuchSyscall(name.escape_debug().to_string());
        let replacement = kernel.symbol(&format!("__x64_sys_{to}")).ok_or_else(|| unknown(to))?;
        let wanted = kernel.symbol(&format!("__x64_sys_{from}")).ok_or_else(|| unknown(from))?;
        let sites = (0..SYSCALLS_MAX)
            .map_while(|number| kernel.syscall_sites(target.view, number).ok())
            .find(|sites| sites.target == wanted)
            .ok_or_else(|| unknown(from))?;
        let mut patches = vec![Patch {
            gpa: sites.table_entry.gpa,
            before: wanted.to_le_bytes().to_vec(),
            after: replacement.to_le_bytes().to_vec(),
        }];
        if let Some(call) = sites.dispatch {
            let displacement =
                |target| call.displacement_to(target).ok_or(Error::OutOfReach { at: call.virt, target });
            // A patch is contiguous in guest-physical memory; the next frame of kernel text may be elsewhere.
            if !call.within_page {
                return Err(Error::Split(call.virt));
            }
            patches.push(Patch {
                gpa: call.displacement_gpa,
                before: displacement(call.target)?.to_le_bytes().to_vec(),
                after: displacement(replacement)?.to_le_bytes().to_vec(),
            });
        }
        let description =
            format!("Injected: system call `{from}` of the guest runs the kernel function of `{to}` now.");
        Ok(Plan { patches, description })
    }
}
