/// The driver did what the standard forbids: the device needs a reset, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProtocolViolation(pub(crate) &'static str);
