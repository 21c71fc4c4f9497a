/// A violation of the virtio protocol by the driver: the device needs a reset. With the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProtocolViolation(pub(crate) &'static str);
