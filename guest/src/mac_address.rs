use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The Ethernet address of a network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MacAddress([u8; 6]);

/// The group bit of the first byte: a multicast address.
const GROUP: u8 = 1;
/// The local bit of the first byte: assigned by an administrator, not by a manufacturer.
const LOCAL: u8 = 2;

impl MacAddress {
    /// The address, unless it is multicast or zero.
    #[must_use]
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        (bytes[0] & GROUP == 0 && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// The default address of network device number `index` of the machine `name`: constant, and different for every
    /// name.
    #[must_use]
    pub fn of_machine(name: &str, index: usize) -> Self {
        // FNV-1a with a final mix: an address needs to be distinct, not secret.
        let bytes = name.bytes().chain([0]).chain(index.to_le_bytes());
        let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= hash >> 33;
        let [first, second, third, fourth, fifth, sixth, ..] = hash.to_le_bytes();
        Self([first & !GROUP | LOCAL, second, third, fourth, fifth, sixth])
    }

    /// Its bytes, in the order of a frame.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if at == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).unwrap_or_default();
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong(text))?;
        }
        if parts.next().is_some() {
            return Err(wrong(text));
        }
        Self::new(bytes).ok_or_else(|| format!("{text} is not the address of one station: use 02:…"))
    }
}

fn wrong(text: &str) -> String {
    format!("{text:?} is no Ethernet address: it looks like 02:00:5e:10:00:01")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_have_addresses_of_their_own() {
        let addresses = [("web", 0), ("web", 1), ("db", 0), ("web2", 0), ("", 0)]
            .map(|(name, index)| MacAddress::of_machine(name, index));
        for (at, address) in addresses.iter().enumerate() {
            assert_eq!(address.bytes()[0] & 3, 2, "{address}: local, and of one station");
            assert!(!addresses[..at].contains(address));
        }
        assert_eq!(addresses[0], MacAddress::of_machine("web", 0));
    }

    #[test]
    fn an_address_is_read_as_it_is_written() {
        let address: MacAddress = "02:00:5e:10:0a:ff".parse().unwrap();
        assert_eq!(address.to_string(), "02:00:5e:10:0a:ff");
        for wrong in [
            "",
            "02:00:5e:10:0a",
            "02:00:5e:10:0a:ff:00",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "+2:0:0:0:0:0",
        ] {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
        }
    }
}
