//! Which branch of `x64_sys_call` a system call takes. The function is one large `switch`, compiled into a tree of
//! comparisons, so its code is followed instruction by instruction with the call's number as the input.

/// An instruction that leaves a function: a direct call or jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Offset of the instruction in the code.
    pub(crate) at: usize,
    /// Its bytes: opcode and a 32-bit displacement.
    pub(crate) length: usize,
    /// The address of its target.
    pub(crate) target: u64,
}

/// Bound on the instructions followed. A tree of a thousand cases is ten comparisons deep; each takes two or three
/// instructions.
const STEPS_MAX: u32 = 4096;
const RSI: usize = 6;

/// The operands of the last comparison.
#[derive(Clone, Copy)]
enum Flags {
    Unknown,
    /// Two numbers were subtracted, as 32 or 64 bits.
    Subtracted {
        left: u64,
        right: u64,
        wide: bool,
    },
    /// The result of a logical operation: compared with zero, no carry.
    Logic {
        result: u64,
        wide: bool,
    },
}

struct Machine<'c> {
    code: &'c [u8],
    base: u64,
    at: usize,
    registers: [Option<u64>; 16],
    flags: Flags,
}

enum Step {
    Next,
    Leave(Exit),
}

/// Follows the code (located at `base`) as `x64_sys_call(regs, number)` until it calls or jumps out of itself. `None`
/// at an instruction that such a function does not contain.
pub(crate) fn follow(code: &[u8], base: u64, number: u32) -> Option<Exit> {
    let mut registers = [None; 16];
    registers[RSI] = Some(number.into());
    let mut machine = Machine { code, base, at: 0, registers, flags: Flags::Unknown };
    for _ in 0..STEPS_MAX {
        if let Step::Leave(exit) = machine.step()? {
            return Some(exit);
        }
    }
    None
}

/// The prefix and operand bytes that all instructions here share.
struct Operands {
    wide: bool,
    /// The register in the middle of the `ModRM` byte, or the operation.
    middle: usize,
    /// The register operand; `None` when it is memory.
    register: Option<usize>,
    /// Length of `ModRM`, SIB and displacement.
    length: usize,
}

impl Machine<'_> {
    fn byte(&self, ahead: usize) -> Option<u8> {
        self.code.get(self.at + ahead).copied()
    }

    fn displacement(&self, ahead: usize) -> Option<i64> {
        let bytes = self.code.get(self.at + ahead..)?.first_chunk::<4>()?;
        Some(i32::from_le_bytes(*bytes).into())
    }

    fn operands(&self, ahead: usize, rex: u8) -> Option<Operands> {
        let modrm = self.byte(ahead)?;
        let (mode, middle, low) = (modrm >> 6, (modrm >> 3) & 7, modrm & 7);
        let high = |bit: u8| usize::from(rex >> bit & 1) * 8;
        let mut length = 1;
        if mode != 3 {
            let sib = if low == 4 { Some(self.byte(ahead + 1)?) } else { None };
            length += usize::from(sib.is_some());
            length += match mode {
                0 if low == 5 || sib.is_some_and(|sib| sib & 7 == 5) => 4,
                1 => 1,
                2 => 4,
                _ => 0,
            };
        }
        let register = (mode == 3).then(|| usize::from(low) + high(0));
        Some(Operands { wide: rex & 8 != 0, middle: usize::from(middle) + high(2), register, length })
    }

    fn skip(&mut self, bytes: usize) -> Option<Step> {
        self.at += bytes;
        (self.at < self.code.len()).then_some(Step::Next)
    }

    /// A direct branch: one inside the code is followed, one that leads outside is the exit.
    fn branch(&mut self, length: usize, displacement: i64) -> Step {
        let target = (self.base + (self.at + length) as u64).wrapping_add_signed(displacement);
        let inside = target.checked_sub(self.base).and_then(|offset| usize::try_from(offset).ok());
        if let Some(offset) = inside.filter(|offset| *offset < self.code.len()) {
            self.at = offset;
            return Step::Next;
        }
        Step::Leave(Exit { at: self.at, length, target })
    }

    fn set(&mut self, register: Option<usize>, value: Option<u64>, wide: bool) {
        if let Some(slot) = register.and_then(|register| self.registers.get_mut(register)) {
            *slot = value.map(|value| if wide { value } else { value & 0xffff_ffff });
        }
    }

    fn get(&self, register: usize) -> Option<u64> {
        self.registers.get(register).copied().flatten()
    }

    fn step(&mut self) -> Option<Step> {
        let start = self.at;
        let mut ahead = 0;
        while matches!(self.byte(ahead)?, 0x66 | 0x2e | 0x3e | 0xf3) && ahead < 4 {
            ahead += 1;
        }
        let mut rex = 0;
        if self.byte(ahead)? & 0xf0 == 0x40 {
            rex = self.byte(ahead)?;
            ahead += 1;
        }
        let opcode = self.byte(ahead)?;
        ahead += 1;
        match opcode {
            // A call at the very start is the function tracer's, which returns.
            0xe8 if start == 0 || self.code.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa]) && start == 4 => {
                self.skip(5)
            }
            0xe8 | 0xe9 => Some(self.branch(ahead + 4, self.displacement(ahead)?)),
            0xeb => Some(self.branch(ahead + 1, self.byte(ahead)?.cast_signed().into())),
            0x70..=0x7f => {
                let displacement = self.byte(ahead)?.cast_signed();
                self.conditional(opcode & 15, ahead + 1, displacement.into())
            }
            0x0f => self.two_byte(ahead, rex),
            // push, pop, nop
            0x50..=0x5f | 0x90 => self.skip(ahead),
            // mov r, imm32
            0xb8..=0xbf if rex & 8 == 0 => {
                let register = usize::from(opcode & 7) + usize::from(rex & 1) * 8;
                let value = self.displacement(ahead)?.cast_unsigned();
                self.set(Some(register), Some(value), false);
                self.skip(ahead + 4)
            }
            // cmp, sub, test with eax and imm32
            0x3d | 0x2d | 0xa9 => {
                let right = self.displacement(ahead)?.cast_unsigned();
                self.arithmetic(
                    match opcode {
                        0x3d => 7,
                        0x2d => 5,
                        _ => 4,
                    },
                    Some(0),
                    right,
                    rex & 8 != 0,
                );
                self.skip(ahead + 4)
            }
            // group 1: imm32, imm8
            0x81 | 0x83 => {
                let operands = self.operands(ahead, rex)?;
                let at = ahead + operands.length;
                let (right, bytes) = if opcode == 0x81 {
                    (self.displacement(at)?, 4)
                } else {
                    (self.byte(at)?.cast_signed().into(), 1)
                };
                self.arithmetic(operands.middle & 7, operands.register, right.cast_unsigned(), operands.wide);
                self.skip(at + bytes)
            }
            0x85 | 0x39 | 0x3b | 0x89 | 0x8b | 0x8d | 0x31 | 0x33 => self.two_registers(opcode, ahead, rex),
            _ => None,
        }
    }

    fn two_byte(&mut self, ahead: usize, rex: u8) -> Option<Step> {
        let opcode = self.byte(ahead)?;
        match opcode {
            0x80..=0x8f => {
                let displacement = self.displacement(ahead + 1)?;
                self.conditional(opcode & 15, ahead + 5, displacement)
            }
            // nop r/m, endbr64
            0x1e | 0x1f => {
                let operands = self.operands(ahead + 1, rex)?;
                self.skip(ahead + 1 + operands.length)
            }
            _ => None,
        }
    }

    fn two_registers(&mut self, opcode: u8, ahead: usize, rex: u8) -> Option<Step> {
        let operands = self.operands(ahead, rex)?;
        let (wide, middle) = (operands.wide, self.get(operands.middle));
        let other = operands.register.and_then(|register| self.get(register));
        let both = |left: Option<u64>, right: Option<u64>| Some((left?, right?));
        match opcode {
            0x89 => self.set(operands.register, middle, wide),
            0x8b => self.set(Some(operands.middle), other, wide),
            0x8d => self.set(Some(operands.middle), None, wide),
            0x31 | 0x33 => {
                let same = operands.register == Some(operands.middle);
                let into = if opcode == 0x31 { operands.register } else { Some(operands.middle) };
                self.set(into, same.then_some(0), wide);
                self.flags = Flags::Unknown;
            }
            0x85 => {
                let result = both(middle, other).map(|(left, right)| left & right);
                self.flags = result.map_or(Flags::Unknown, |result| Flags::Logic { result, wide });
            }
            _ => {
                let operands = if opcode == 0x39 { both(other, middle) } else { both(middle, other) };
                self.flags =
                    operands.map_or(Flags::Unknown, |(left, right)| Flags::Subtracted { left, right, wide });
            }
        }
        self.skip(ahead + operands.length)
    }

    /// Add, and, sub, cmp of a register and a number; other operations make the register unknown.
    fn arithmetic(&mut self, operation: usize, register: Option<usize>, right: u64, wide: bool) {
        let left = register.and_then(|register| self.get(register));
        let subtracted = left.map_or(Flags::Unknown, |left| Flags::Subtracted { left, right, wide });
        match operation {
            7 => self.flags = subtracted,
            5 => {
                self.set(register, left.map(|left| left.wrapping_sub(right)), wide);
                self.flags = subtracted;
            }
            4 => {
                let result = left.map(|left| left & right);
                self.set(register, result, wide);
                self.flags = result.map_or(Flags::Unknown, |result| Flags::Logic { result, wide });
            }
            0 => {
                self.set(register, left.map(|left| left.wrapping_add(right)), wide);
                self.flags = Flags::Unknown;
            }
            _ => {
                self.set(register, None, wide);
                self.flags = Flags::Unknown;
            }
        }
    }

    fn conditional(&mut self, condition: u8, length: usize, displacement: i64) -> Option<Step> {
        if self.flags.meet(condition)? { Some(self.branch(length, displacement)) } else { self.skip(length) }
    }
}

impl Flags {
    /// Whether a condition code (the low four bits of the opcode) is met.
    fn meet(self, condition: u8) -> Option<bool> {
        let (left, right, wide) = match self {
            Self::Unknown => return None,
            Self::Subtracted { left, right, wide } => (left, right, wide),
            Self::Logic { result, wide } => (result, 0, wide),
        };
        let (left, right) = if wide { (left, right) } else { (left & 0xffff_ffff, right & 0xffff_ffff) };
        let sign = |word: u64| if wide { word.cast_signed() } else { (word << 32).cast_signed() };
        let met = match condition >> 1 {
            1 => left < right,
            2 => left == right,
            3 => left <= right,
            4 => sign(left.wrapping_sub(right)) < 0,
            6 => sign(left) < sign(right),
            7 => sign(left) <= sign(right),
            _ => return None,
        };
        Some(met ^ (condition & 1 == 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: u64 = 0xffff_ffff_8100_0000;

    /// nopl; cmp $0xb0,%esi; je A; ja B; cmp $0x56,%esi; jbe C; A: jmp +0x1000; B: call +0x2000; C: jmp +0x3000
    fn code() -> Vec<u8> {
        let mut code = vec![0x0f, 0x1f, 0x44, 0, 0, 0x81, 0xfe, 0xb0, 0, 0, 0];
        code.extend([0x0f, 0x84, 7, 0, 0, 0, 0x77, 10, 0x83, 0xfe, 0x56, 0x76, 10]);
        code.extend([0xe9, 0, 0x10, 0, 0, 0xe8, 0, 0x20, 0, 0, 0xe9, 0, 0x30, 0, 0]);
        code
    }

    #[test]
    fn the_tree_of_comparisons_is_followed() {
        let code = code();
        let target = |at: usize, displacement: u64| Exit {
            at,
            length: 5,
            target: BASE + at as u64 + 5 + displacement,
        };
        assert_eq!(follow(&code, BASE, 0xb0), Some(target(24, 0x1000)));
        assert_eq!(follow(&code, BASE, 0x60), Some(target(24, 0x1000)));
        assert_eq!(follow(&code, BASE, 0xb1), Some(target(29, 0x2000)));
        assert_eq!(follow(&code, BASE, 3), Some(target(34, 0x3000)));
    }

    #[test]
    fn a_traced_start_and_a_frame_are_stepped_over() {
        let mut traced = code();
        traced[0] = 0xe8;
        assert_eq!(follow(&traced, BASE, 3), follow(&code(), BASE, 3));
        let framed = [
            &[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5, 0x89, 0xf0, 0x85, 0xc0, 0x75, 5][..],
            &[0xe8; 10],
        ]
        .concat();
        assert_eq!(follow(&framed, BASE, 0).map(|exit| exit.at), Some(14));
        assert_eq!(follow(&framed, BASE, 1).map(|exit| exit.at), Some(19));
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_panic(code in prop::collection::vec(any::<u8>(), 0..200), number: u32) {
            if let Some(exit) = follow(&code, BASE, number) {
                prop_assert!(exit.at + exit.length <= code.len());
            }
        }
    }
}
