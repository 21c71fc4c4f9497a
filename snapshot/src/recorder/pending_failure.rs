/// A failure that could not be recorded in the catalogue yet.
pub(super) struct PendingFailure {
    pub(super) why: String,
    pub(super) is_memory_whole: bool,
}
