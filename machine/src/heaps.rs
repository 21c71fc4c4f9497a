use nix::libc;

/// Heaps of the C library at most.
const HEAPS_MAX: libc::c_int = 2;

/// Limits the number of heaps from which the C library allocates memory for this process. Call it first, while there is
/// one thread.
///
/// By default it keeps one for each thread, up to eight for each processor. Short-lived copies of pages and long-lived
/// cached pages are mixed in all of them, so that memory grows to twice what is used.
pub fn limit_heaps() {
    // SAFETY: `mallopt` changes a number of the allocator, and takes and returns no pointers.
    let is_set = unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS_MAX) };
    // The process works without it, with more memory.
    debug_assert_eq!(is_set, 1, "the C library limits the number of its heaps");
}
