use std::str::FromStr;

/// What a user calls a checkpoint. The service resolves it, and takes an empty one for its default: here it is refused, so
/// that an unset variable of a script names nothing.
#[derive(Clone, Debug)]
pub(super) struct CheckpointName(pub(super) String);

impl FromStr for CheckpointName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name.is_empty() { Err("it names no checkpoint".to_owned()) } else { Ok(Self(name.to_owned())) }
    }
}
