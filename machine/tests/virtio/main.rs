//! Virtio devices without a machine: the tests are the driver.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod block;
mod driver;
mod hostile;
mod rng;
mod transport;
