use std::collections::BTreeSet;

use retrovisor_guest::ProcessIdentity;

/// What is being brought up.
#[derive(Default)]
pub(crate) struct Reservations {
    pub(crate) names: BTreeSet<String>,
    pub(crate) processes: BTreeSet<ProcessIdentity>,
}
