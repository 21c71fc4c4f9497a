use acpi_tables::{Aml, aml};
use retrovisor_guest::Gpa;

/// The address of the machine's generation identifier, 16 bytes: in a page that is not described as memory.
pub(crate) const GENERATION_ID: Gpa = Gpa(0xd_f000);
/// The line that signals a change.
pub(crate) const GENERATION_LINE: u32 = 9;
/// The notification of that device: its status changed.
const CHANGED: u8 = 0x80;

/// The generation identifier as a device, and the device that turns its interrupt into a notification, which a machine
/// without the registers of full ACPI needs.
pub(super) fn describe(body: &mut Vec<u8>) {
    aml::Device::new(
        "_SB_.VGEN".into(),
        vec![
            &aml::Name::new("_HID".into(), &"RTRV0001"),
            // The name in the specification, and the one that fits systems which keep eight letters.
            &aml::Name::new("_CID".into(), &aml::Package::new(vec![&"VM_Gen_Counter", &"VMGENCTR"])),
            &aml::Name::new("_DDN".into(), &"VM_Gen_Counter"),
            // The lower and the upper half of its address.
            &aml::Name::new("ADDR".into(), &aml::Package::new(vec![&GENERATION_ID.0, &aml::ZERO])),
        ],
    )
    .to_aml_bytes(body);
    aml::Device::new(
        "_SB_.GED0".into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::Interrupt::new(
                    true,
                    true,
                    false,
                    false,
                    GENERATION_LINE,
                )]),
            ),
            &aml::Method::new(
                "_EVT".into(),
                1,
                true,
                // Named from the root: a name of several parts is not looked for in the scopes above.
                vec![&aml::If::new(
                    &aml::Equal::new(&aml::Arg(0), &GENERATION_LINE),
                    vec![&aml::Notify::new(&aml::Path::new(r"\_SB_.VGEN"), &CHANGED)],
                )],
            ),
        ],
    )
    .to_aml_bytes(body);
}
