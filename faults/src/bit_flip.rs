use retrovisor_guest::Gpa;

use crate::{Arguments, Error, Fault, Parameter, Patch, Plan, Target};

/// Flips one bit of guest memory, like a memory error. Injecting it a second time restores the bit.
pub(crate) struct BitFlip;

impl Fault for BitFlip {
    fn name(&self) -> &'static str {
        "bit-flip"
    }

    fn doc(&self) -> &'static str {
        "Flips one bit of memory, given by guest-physical address or by kernel symbol"
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[
            Parameter {
                name: "gpa",
                unit: "address",
                doc: "guest-physical address of the byte; needed where no symbol is given",
                default: None,
            },
            Parameter {
                name: "symbol",
                unit: "",
                doc: "kernel symbol that the byte is counted from; needed where no address is given",
                default: None,
            },
            Parameter {
                name: "offset_bytes",
                unit: "bytes",
                doc: "distance of the byte from the symbol",
                default: Some("0"),
            },
            Parameter {
                name: "bit",
                unit: "",
                doc: "the bit of the byte, 0 (lowest) to 7",
                default: Some("0"),
            },
        ]
    }

    fn expected(&self) -> &'static str {
        "in the kernel's code or constants the invariant text_changed or rodata_changed is violated in the next \
         checkpoint; in other memory only what the guest does with the wrong value shows"
    }

    fn plan(&self, target: &Target, arguments: &Arguments) -> Result<Plan, Error> {
        let refused = |name: &str, problem: &str| Error::Parameter {
            name: name.to_owned(),
            problem: problem.to_owned(),
        };
        let bit =
            arguments.number("bit")?.filter(|bit| *bit < 8).ok_or_else(|| refused("bit", "is not 0 to 7"))?;
        let (gpa, place) = match (arguments.number("gpa")?, arguments.get("symbol")) {
            (Some(gpa), None) => (Gpa(gpa), String::new()),
            (None, Some(symbol)) => {
                by_symbol(target, symbol, arguments.number("offset_bytes")?.unwrap_or(0))?
            }
            (Some(_), Some(_)) => return Err(refused("gpa", "and `symbol` exclude each other")),
            (None, None) => return Err(refused("gpa", "or `symbol` is needed")),
        };
        let mut byte = [0];
        target.view.read(gpa, &mut byte)?;
        let before = byte[0];
        let after = before ^ (1 << bit);
        let owner = target.owner(gpa.gfn());
        let description = format!(
            "Injected: bit {bit} of the byte at guest-physical address {:#x}{place}, in memory of {owner}, is flipped: \
             {before:#04x} became {after:#04x}.",
            gpa.0
        );
        Ok(Plan { patches: vec![Patch { gpa, before: vec![before], after: vec![after] }], description })
    }
}

/// The byte at an offset from a kernel symbol, and a text for it.
fn by_symbol(target: &Target, symbol: &str, offset_bytes: u64) -> Result<(Gpa, String), Error> {
    let kernel = target.kernel()?;
    let shown = symbol.escape_debug();
    let at = kernel
        .symbol(symbol)
        .and_then(|at| at.checked_add(offset_bytes))
        .ok_or_else(|| Error::NoSuchSymbol(shown.to_string()))?;
    Ok((kernel.translate(target.view, at)?, format!(" ({shown}+{offset_bytes:#x})")))
}

#[cfg(test)]
mod tests {
    use retrovisor_guest::{MemoryIo as _, MemoryLayout};
    use retrovisor_scripted::MemoryMachine;

    use super::*;

    fn plan(machine: &MemoryMachine, given: &[(&str, &str)]) -> Result<Plan, Error> {
        let given = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let target = Target { view: machine.memory(), registers: &[], library: None };
        BitFlip.plan(&target, &Arguments::new(&BitFlip, given)?)
    }

    #[test]
    fn a_bit_is_flipped_described_and_put_back() {
        let mut machine = MemoryMachine::new("m", MemoryLayout::flat(4 * 4096).unwrap()).unwrap();
        machine.poke(Gpa(4097), &[0x41]).unwrap();
        let byte = |machine: &MemoryMachine| {
            let mut byte = [0];
            machine.memory().read(Gpa(4097), &mut byte).unwrap();
            byte[0]
        };
        let flip = plan(&machine, &[("gpa", "0x1001"), ("bit", "3")]).unwrap();
        for part in ["0x1001", "0x41 became 0x49", "an unknown owner"] {
            assert!(flip.description.contains(part), "{}", flip.description);
        }
        flip.apply(&mut machine, &mut |_| {}).unwrap();
        assert_eq!(byte(&machine), 0x49);
        flip.undo().apply(&mut machine, &mut |_| {}).unwrap();
        assert_eq!(byte(&machine), 0x41);
    }

    #[test]
    fn what_cannot_be_flipped_is_refused() {
        let machine = MemoryMachine::new("m", MemoryLayout::flat(4 * 4096).unwrap()).unwrap();
        assert!(matches!(plan(&machine, &[]), Err(Error::Parameter { .. })));
        assert!(matches!(plan(&machine, &[("gpa", "0"), ("bit", "8")]), Err(Error::Parameter { .. })));
        assert!(matches!(plan(&machine, &[("gpa", "0"), ("symbol", "x")]), Err(Error::Parameter { .. })));
        assert!(matches!(plan(&machine, &[("gpa", "0x100000000")]), Err(Error::Memory(_))));
        assert!(matches!(plan(&machine, &[("symbol", "jiffies")]), Err(Error::Kernel(_))));
    }
}
