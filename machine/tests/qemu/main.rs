//! The QEMU driver on the real test guest.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod attach;
mod checkpoint;
mod disk;
mod fast_attach;
mod foreign;
mod guest;
mod launch;

fn sleep_ms(milliseconds: u64) {
    std::thread::sleep(std::time::Duration::from_millis(milliseconds));
}
