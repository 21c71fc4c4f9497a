//! Linux in a microVM, with a store: where this host's KVM can run it, else in the lab (`setup/lab.sh`).
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod autopsy;
mod branch;
mod breadth;
mod clocks;
mod guest;
mod kernels;
mod lab;
mod listener;
mod network;
mod service;
mod talking;
mod time_travel;
