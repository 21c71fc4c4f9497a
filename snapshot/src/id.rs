use std::fmt;

use rand::RngExt as _;
use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id!(
    /// A machine, within one store.
    MachineId
);
id!(
    /// A timeline, within one store.
    TimelineId
);
id!(
    /// A checkpoint, within one store: the number that joins the tables. Users see its short id.
    CheckpointId
);
id!(
    /// An operation, within one store.
    OperationId
);
id!(
    /// A disk of a machine, within one store.
    DiskId
);
id!(
    /// An incident, within one store.
    IncidentId
);
id!(
    /// An event, within one store: later events have higher numbers.
    EventId
);

/// Letters of short ids: none is a hexadecimal digit, so that an id is never taken for an address or a hash.
const LETTERS: &[u8; 16] = b"klmnopqrstuvwxyz";
/// Length of a short id: 48 bits.
const LENGTH: usize = 12;

/// A new random short id.
pub(crate) fn fresh_name() -> String {
    let mut rng = rand::rng();
    (0..LENGTH).map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())])).collect()
}

/// Whether the text can be the beginning of a short id.
pub(crate) fn is_name_prefix(text: &str) -> bool {
    (1..=LENGTH).contains(&text.len()) && text.bytes().all(|byte| LETTERS.contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_ids_are_not_numbers() {
        let name = fresh_name();
        assert_eq!(name.len(), LENGTH);
        assert!(is_name_prefix(&name) && is_name_prefix(&name[..3]));
        assert!(!is_name_prefix("") && !is_name_prefix("12") && !is_name_prefix("kkkkkkkkkkkkk"));
    }
}
