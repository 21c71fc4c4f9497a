//! Parses the text of the monitor's `info registers -a`.

use std::collections::HashMap;

use retrovisor_guest::{DescriptorTable, VcpuRegisters};

/// Bound on the vCPUs whose registers are read. QEMU itself stops at 1024.
const VCPUS_MAX: usize = 4096;
/// In the order of [`VcpuRegisters::general`].
const GENERAL: [&str; 16] = [
    "RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP", "R8", "R9", "R10", "R11", "R12", "R13", "R14",
    "R15",
];

/// The first eight, in code that is not 64-bit.
const GENERAL_32: [&str; 8] = ["EAX", "EBX", "ECX", "EDX", "ESI", "EDI", "EBP", "ESP"];

/// One entry for each vCPU, or what is missing. Model-specific registers are not in this text.
pub(super) fn parse(text: &str) -> Result<Vec<VcpuRegisters>, String> {
    let mut vcpus = Vec::new();
    for (at, block) in text.split("CPU#").skip(1).take(VCPUS_MAX).enumerate() {
        let (number, block) = block.split_once('\n').unwrap_or((block, ""));
        if number.trim().parse() != Ok(at) {
            return Err(format!("the registers of vCPU {at} are missing"));
        }
        vcpus.push(
            vcpu(block).map_err(|name| format!("register {name} of vCPU {at} is missing or not a number"))?,
        );
    }
    Ok(vcpus)
}

fn vcpu(block: &str) -> Result<VcpuRegisters, &'static str> {
    // `R8 =…` and `FS =…` have a space before the sign; a segment or table has more words after its first.
    let mut fields = HashMap::new();
    for line in block.lines() {
        let Some((name, rest)) = line.split_once('=') else { continue };
        if matches!(name.trim_end(), "FS" | "GS" | "CS" | "GDT" | "IDT") {
            fields.insert(name.trim_end(), rest);
            continue;
        }
        let mut name = name.trim_end();
        let mut rest = rest;
        loop {
            let (value, after) = rest.split_once(' ').unwrap_or((rest, ""));
            fields.insert(name, value);
            let Some((next, value)) = after.split_once('=') else { break };
            // Text between a value and the next name, such as the decoded flags after RFL, is skipped.
            name = next.trim_end().rsplit(' ').next().unwrap_or_default();
            rest = value;
        }
    }
    let word = |name: &'static str, at: usize| {
        let text = fields.get(name).and_then(|text| text.split_ascii_whitespace().nth(at)).ok_or(name)?;
        u64::from_str_radix(text, 16).map_err(|_| name)
    };
    let table = |name| -> Result<DescriptorTable, &'static str> {
        let limit = word(name, 1)?;
        Ok(DescriptorTable { base: word(name, 0)?, limit: u16::try_from(limit).map_err(|_| name)? })
    };
    // In code that is not 64-bit, QEMU shows the lower halves under their old names, and no R8 to R15.
    let wide = fields.contains_key("RIP");
    let names = if wide { &GENERAL[..] } else { &GENERAL_32 };
    let mut general = [0; 16];
    for (value, name) in general.iter_mut().zip(names) {
        *value = word(name, 0)?;
    }
    Ok(VcpuRegisters {
        general,
        rip: word(if wide { "RIP" } else { "EIP" }, 0)?,
        rflags: word(if wide { "RFL" } else { "EFL" }, 0)?,
        cr0: word("CR0", 0)?,
        cr2: word("CR2", 0)?,
        cr3: word("CR3", 0)?,
        cr4: word("CR4", 0)?,
        efer: word("EFER", 0)?,
        fs_base: word("FS", 1)?,
        gs_base: word("GS", 1)?,
        privilege: u8::try_from(word("CPL", 0)?).ok().filter(|level| *level < 4).ok_or("CPL")?,
        halted: word("HLT", 0)? != 0,
        idt: table("IDT")?,
        gdt: table("GDT")?,
        kernel_gs_base: None,
        lstar: None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The output of QEMU 7.2 for a 64-bit guest, without floating-point registers.
    const TEXT: &str = "\r
CPU#0\r
RAX=0000000000000001 RBX=ffe0a714440628c0 RCX=0000000000001000 RDX=ffe0a714440628c0\r
RSI=ffe0a71444062900 RDI=ff445bebc18a3000 RBP=ff445bec3bc378c0 RSP=ff7e5d0800013998\r
R8 =0000000000000008 R9 =0000000000079fd9 R10=ff7e5d0800013a98 R11=ff445bec3bc378d8\r
R12=0000000000000000 R13=ff445bec3ffd3c00 R14=ff445bec3ffd4e00 R15=ffe0a714440628cf\r
RIP=ffffffff9cbc29b0 RFL=00000246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=1\r
ES =0000 0000000000000000 00000000 00000000\r
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\r
FS =0000 0000000000000005 00000000 00000000\r
GS =0000 ff445bec3bc00000 00000000 00000000\r
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT\r
TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl\r
GDT=     fffffe0000001000 0000007f\r
IDT=     fffffe0000000000 00000fff\r
CR0=80050033 CR2=ff445bec3ffff000 CR3=0000000078210000 CR4=00751eb0\r
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000 \r
DR6=00000000ffff0ff0 DR7=0000000000000400\r
EFER=0000000000000d01\r
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80\r
FPR0=0000000000000000 0000 FPR1=0000000000000000 0000\r
";

    #[test]
    fn a_64_bit_vcpu() {
        let two = format!("{TEXT}{}", TEXT.replace("CPU#0", "CPU#1").replace("HLT=1", "HLT=0"));
        let vcpus = parse(&two).unwrap();
        assert_eq!(vcpus.len(), 2);
        let registers = &vcpus[0];
        assert_eq!(
            (registers.general[0], registers.general[8], registers.general[15]),
            (1, 8, 0xffe0_a714_4406_28cf)
        );
        assert_eq!((registers.rip, registers.rflags), (0xffff_ffff_9cbc_29b0, 0x246));
        assert_eq!((registers.privilege, registers.halted, vcpus[1].halted), (3, true, false));
        assert_eq!((registers.fs_base, registers.gs_base), (5, 0xff44_5bec_3bc0_0000));
        assert_eq!(registers.idt, DescriptorTable { base: 0xffff_fe00_0000_0000, limit: 0xfff });
        assert_eq!(registers.gdt, DescriptorTable { base: 0xffff_fe00_0000_1000, limit: 0x7f });
        assert_eq!((registers.cr0, registers.cr4, registers.efer), (0x8005_0033, 0x75_1eb0, 0xd01));
        assert_eq!((registers.cr2, registers.cr3), (0xff44_5bec_3fff_f000, 0x7821_0000));
    }

    #[test]
    fn a_vcpu_at_reset() {
        let text = "CPU#0
EAX=00000000 EBX=00000000 ECX=00000000 EDX=00060fb1
ESI=00000000 EDI=00000000 EBP=00000000 ESP=00000007
EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
ES =0000 00000000 0000ffff 00009300
CS =f000 ffff0000 0000ffff 00009b00
SS =0000 00000000 0000ffff 00009300
FS =0000 00000000 0000ffff 00009300
GS =0000 00000000 0000ffff 00009300
GDT=     00000000 0000ffff
IDT=     00000000 0000ffff
CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000
EFER=0000000000000000
";
        let vcpu = parse(text).unwrap().remove(0);
        assert_eq!((vcpu.rip, vcpu.rflags, vcpu.cr0), (0xfff0, 2, 0x6000_0010));
        assert_eq!((vcpu.general[3], vcpu.general[7], vcpu.general[8]), (0x6_0fb1, 7, 0));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(parse(&TEXT.replace("CR3=", "XX3=")).unwrap_err().contains("CR3 of vCPU 0"));
        assert!(parse(&TEXT.replace("0000007f", "0001007f")).unwrap_err().contains("GDT"));
        assert!(parse(&TEXT.replace("CPL=3", "CPL=4")).unwrap_err().contains("CPL"));
        assert!(parse(&TEXT.replace("CPU#0", "CPU#1")).unwrap_err().contains("vCPU 0"));
        assert_eq!(parse(""), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn any_text_is_registers_or_an_error(text in ".{0,300}", at in 0..TEXT.len(), length in 0..90_usize) {
            let _ = parse(&format!("CPU#0\n{text}"));
            let mut bytes = TEXT.as_bytes().to_vec();
            bytes.splice(at..(at + length).min(TEXT.len()), text.bytes());
            let _ = parse(&String::from_utf8_lossy(&bytes));
        }
    }
}
