//! The harness of the end-to-end tests: the real command, a real daemon, the real guest.
//!
//! Everything runs from temporary folders and ends with the test, also when it fails.
#![forbid(unsafe_code)]
#![expect(clippy::missing_panics_doc, clippy::expect_used, reason = "a test that cannot go on panics")]

mod command;
mod daemon;
mod foreign;
mod guest;
mod measured;
mod owner;
mod processes;
mod shell;

pub use command::{Ran, command_path, retrovisor};
pub use daemon::Daemon;
pub use foreign::{ForeignOptions, ForeignQemu};
pub use guest::{GuestImage, launch_config};
pub use measured::Measured;
pub use owner::Owner;
pub use processes::{defunct_children, qemus_in};

/// Tries until the condition holds; panics with what was waited for when it does not within the time.
pub fn wait_until(what: &str, patience: std::time::Duration, mut condition: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !condition() {
        assert!(began.elapsed() < patience, "waited {patience:?} in vain for: {what}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
