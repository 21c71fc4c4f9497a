use retrovisor_guest::MemoryView;
use retrovisor_introspect::Kernel;

use crate::{Error, Patch};

/// Numbers that x86-64 has given out so far are below this.
const SYSCALLS_MAX: u32 = 600;

/// Plans to make system call `from` run the kernel function of `to`: in `sys_call_table`, and where the kernel
/// dispatches through `x64_sys_call`, in the call there, too.
pub fn plan(kernel: &Kernel, view: &dyn MemoryView, from: &str, to: &str) -> Result<Vec<Patch>, Error> {
    let unknown = |name: &str| Error::NoSuchSyscall(name.escape_debug().to_string());
    let replacement = kernel.symbol(&format!("__x64_sys_{to}")).ok_or_else(|| unknown(to))?;
    let wanted = kernel.symbol(&format!("__x64_sys_{from}")).ok_or_else(|| unknown(from))?;
    let sites = (0..SYSCALLS_MAX)
        .map_while(|number| kernel.syscall_sites(view, number).ok())
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
    Ok(patches)
}
