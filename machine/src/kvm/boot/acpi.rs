use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use retrovisor_guest::{Gpa, MachineError};

use super::generation;
use crate::kvm::virtio::{WINDOW_BYTES, Window};
use crate::ram::Ram;

/// Where guests look for the root of the tables; the other tables follow it.
pub(super) const RSDP: Gpa = Gpa(0xe_0000);
const TABLES: u64 = RSDP.0 + 0x100;
const TABLES_END: u64 = 1 << 20;
const OEM: [u8; 6] = *b"RETROV";
const TABLE: [u8; 8] = *b"RETROVIS";
const REVISION: u32 = 1;
/// The revision of the language of the DSDT from which integers have 64 bits.
const DSDT_REVISION: u8 = 2;
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;

/// Sleep control and sleep status, for power-off.
pub(crate) const POWER_PORT: u16 = 0x600;
pub(crate) const POWER_PORTS: u16 = 2;
/// The value of the sleep type that means off, and the bit that makes it happen.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;
pub(crate) const SLEEP_ENABLE: u8 = 1 << 5;
/// Flags of the FADT: no VGA, no clock in the CMOS (probing for one takes seconds).
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;
const RESET_PORT: u16 = 0x64;
const RESET_VALUE: u8 = 0xfe;

const SERIAL_PORT: u16 = 0x3f8;
const SERIAL_LINE: u32 = 4;

/// Writes the tables that describe the machine to the guest.
pub(super) fn write(ram: &Ram, vcpus: u32, virtio: &[Window]) -> Result<(), MachineError> {
    let mut next = TABLES;
    let mut put = |table: &dyn Aml| -> Result<u64, MachineError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = next;
        next = (at + bytes.len() as u64).next_multiple_of(16);
        if next > TABLES_END {
            return Err(MachineError::Config {
                what: "this machine's description does not fit below 1 MiB".into(),
                help: "Use fewer devices".into(),
            });
        }
        ram.write(Gpa(at), &bytes)?;
        Ok(at)
    };
    let dsdt = put(&dsdt(virtio))?;
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    (fadt.sleep_control_reg, fadt.sleep_status_reg) = (port(POWER_PORT), port(POWER_PORT + 1));
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    (fadt.reset_reg, fadt.reset_value) = (port(RESET_PORT), RESET_VALUE);
    let fadt = put(&fadt.finalize())?;
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(LOCAL_APIC));
    let vcpus = u8::try_from(vcpus).unwrap_or(u8::MAX);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vcpus, IO_APIC, 0));
    let madt = put(&madt)?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&xsdt)?;
    let mut root = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut root);
    Ok(ram.write(RSDP, &root)?)
}

/// The devices that a guest cannot find by probing, and how to switch off.
fn dsdt(virtio: &[Window]) -> Sdt {
    let mut body = Vec::new();
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Interrupt::new(true, true, false, false, SERIAL_LINE),
                    &aml::IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut body);
    for (number, window) in virtio.iter().enumerate() {
        VirtioNode { number, window: *window }.to_aml_bytes(&mut body);
    }
    generation::describe(&mut body);
    aml::Name::new("_S5_".into(), &aml::Package::new(vec![&SLEEP_TYPE_OFF])).to_aml_bytes(&mut body);
    let mut table = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, TABLE, REVISION);
    table.append_slice(&body);
    table
}

/// The identification by which the guest's virtio-mmio driver finds a device.
struct VirtioNode {
    number: usize,
    window: Window,
}

impl Aml for VirtioNode {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        // Below 4 GiB, and there are a few of them.
        let base = u32::try_from(self.window.first.0).unwrap_or(u32::MAX);
        let bytes = u32::try_from(WINDOW_BYTES).unwrap_or(u32::MAX);
        aml::Device::new(
            format!("_SB_.VR{:02}", self.number).as_str().into(),
            vec![
                &aml::Name::new("_HID".into(), &"LNRO0005"),
                &aml::Name::new("_UID".into(), &self.number),
                &aml::Name::new("_CCA".into(), &aml::ONE),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![
                        &aml::Memory32Fixed::new(true, base, bytes),
                        &aml::Interrupt::new(true, false, false, false, self.window.line),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}
