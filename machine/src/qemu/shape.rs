//! The properties that a machine must share with a state before it is applied.

use std::collections::BTreeMap;

use retrovisor_guest::{Accelerator, MachineError, MachineState, MemoryLayout, StateSection};
use serde::{Deserialize, Serialize};

use super::devices::differences;

/// The format of the section with a [`Shape`], as JSON.
const FORMAT: &str = "qemu-machine/1";

/// The properties of a machine that its device state does not contain, or that QEMU checks too late.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    /// QEMU's version, without the part that does not change formats: `7.2`.
    pub(super) version: String,
    /// QEMU's name for the board, with its version: `pc-q35-7.2-machine`.
    pub(super) board: String,
    pub(super) accelerator: Accelerator,
    pub(super) vcpus: u32,
    pub(super) layout: MemoryLayout,
    /// The devices that can be added and removed, by path, each with its type. States of earlier versions of this driver
    /// have none, and are not compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) devices: Option<BTreeMap<String, String>>,
}

impl Shape {
    /// The two sections of a state: the shape, and the stream of the devices.
    pub(super) fn sections(&self, stream: Vec<u8>) -> Result<Vec<StateSection>, MachineError> {
        let bytes = serde_json::to_vec(self).map_err(|error| MachineError::Driver {
            doing: "describing the machine".into(),
            message: error.to_string(),
        })?;
        let own = StateSection { format: FORMAT.into(), bytes };
        Ok(vec![own, StateSection { format: self.stream_format(), bytes: stream }])
    }

    fn stream_format(&self) -> String {
        format!("qemu-vmstate/{}", self.version)
    }

    /// The machine type that a state was taken from, as an option of QEMU; `None` for a state of another driver.
    pub(super) fn board_of(state: &MachineState) -> Option<String> {
        let section = state.sections.iter().find(|section| section.format == FORMAT)?;
        let taken = serde_json::from_slice::<Self>(&section.bytes).ok()?;
        Some(taken.board.strip_suffix("-machine").unwrap_or(&taken.board).to_owned())
    }

    /// The stream of a state that was taken from a machine of this shape. Any other is refused with the difference.
    ///
    /// A newer QEMU reads the streams of older ones, if the machine has the same type, with its version (QEMU's
    /// "Migration compatibility"). Older ones are not made for the streams of newer ones.
    pub(super) fn stream_of<'a>(&self, state: &'a MachineState) -> Result<&'a [u8], MachineError> {
        let mismatch = |what: &str, expected: &dyn ToString, found: &dyn ToString| MachineError::Mismatch {
            what: what.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        };
        let formats =
            || state.sections.iter().map(|section| section.format.as_str()).collect::<Vec<_>>().join(", ");
        let section = |wanted: &str| {
            let found = state.sections.iter().find(|section| section.format == wanted);
            found.ok_or_else(|| mismatch("the state format", &wanted, &formats()))
        };
        let taken = serde_json::from_slice::<Self>(&section(FORMAT)?.bytes)
            .map_err(|error| mismatch("the machine's description", &FORMAT, &error))?;
        let text = |layout: &MemoryLayout| {
            let slots = layout.slots().iter();
            slots
                .map(|slot| format!("{} bytes at {}", slot.length_bytes, slot.gpa))
                .collect::<Vec<_>>()
                .join(", ")
        };
        if number(&taken.version) > number(&self.version) {
            return Err(mismatch("QEMU's version", &format!("{} or later", taken.version), &self.version));
        }
        if taken.board != self.board {
            return Err(mismatch("the board", &taken.board, &self.board));
        }
        if taken.accelerator != self.accelerator {
            return Err(mismatch("the accelerator", &taken.accelerator, &self.accelerator));
        }
        if taken.vcpus != self.vcpus {
            return Err(mismatch("the number of vCPUs", &taken.vcpus, &self.vcpus));
        }
        if taken.layout != self.layout {
            return Err(mismatch("the memory", &text(&taken.layout), &text(&self.layout)));
        }
        // QEMU itself would let a device that the state does not have keep its own, and refuse one that it does not have
        // when it has loaded half of the state.
        if let (Some(before), Some(now)) = (&taken.devices, &self.devices) {
            let all = differences(before, now);
            if !all.is_empty() {
                return Err(mismatch("the devices", &"those of the checkpoint", &all.join(", ")));
            }
        }
        Ok(&section(&taken.stream_format())?.bytes)
    }
}

/// A version as numbers, which compare as versions do.
fn number(version: &str) -> Vec<u32> {
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            version: "7.2".into(),
            board: "pc-q35-7.2-machine".into(),
            accelerator: Accelerator::Tcg,
            vcpus: 2,
            layout: MemoryLayout::flat(1 << 20).unwrap(),
            devices: Some(BTreeMap::from([("/machine/peripheral/rng".into(), "virtio-rng-pci".into())])),
        }
    }

    #[test]
    fn only_a_state_of_the_same_shape_fits() {
        let state = |shape: Shape| MachineState {
            sections: shape.sections(b"QEVM".to_vec()).unwrap(),
            ..MachineState::default()
        };
        assert_eq!(shape().stream_of(&state(shape())).unwrap(), b"QEVM");
        for (other, words) in [
            (
                Shape { version: "10.0".into(), ..shape() },
                "QEMU's version: expected 10.0 or later, found 7.2",
            ),
            (Shape { board: "pc".into(), ..shape() }, "the board"),
            (Shape { accelerator: Accelerator::Kvm, ..shape() }, "accelerator: expected kvm, found tcg"),
            (Shape { vcpus: 1, ..shape() }, "vCPUs: expected 1, found 2"),
            (
                Shape { layout: MemoryLayout::flat(4096).unwrap(), ..shape() },
                "expected 4096 bytes at 0x0, found 1048576",
            ),
            (Shape { devices: Some(BTreeMap::new()), ..shape() }, "found rng (virtio-rng-pci) was added"),
        ] {
            let error = shape().stream_of(&state(other)).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
        let newer = Shape { version: "10.0".into(), ..shape() };
        assert_eq!(newer.stream_of(&state(shape())).unwrap(), b"QEVM");
        let older = Shape { devices: None, ..shape() };
        assert_eq!(shape().stream_of(&state(older)).unwrap(), b"QEVM");
        assert_eq!(Shape::board_of(&state(shape())).unwrap(), "pc-q35-7.2");
        assert_eq!(Shape::board_of(&MachineState::default()), None);
        let mut damaged = state(shape());
        damaged.sections[0].bytes.truncate(9);
        assert!(shape().stream_of(&damaged).is_err());
        damaged.sections.remove(0);
        assert!(shape().stream_of(&damaged).is_err());
    }
}
