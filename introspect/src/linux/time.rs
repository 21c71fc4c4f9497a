use crate::probe::Probe;

/// The guest's clocks, as of its last timer tick.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    /// Since boot, without suspend.
    pub(crate) monotonic_ns: Option<u64>,
    /// Since boot, suspend included.
    pub(crate) uptime_ns: Option<u64>,
    /// Wall-clock second of the boot.
    pub(crate) boot_time_s: Option<i64>,
}

const CENTURY_NS: u64 = 100 * 366 * 86_400 * 1_000_000_000;
const SECOND_NS: i64 = 1_000_000_000;

impl Clock {
    pub(crate) fn read(probe: &Probe) -> Self {
        let Some(timekeeper) = timekeeper(probe) else { return Self::default() };
        let number = |path: &str| probe.reader.number(timekeeper, probe.field("timekeeper", path)?);
        let monotonic = || {
            let shift = u32::try_from(number("tkr_mono.shift")?).ok()?;
            let fraction = number("tkr_mono.xtime_nsec")?.checked_shr(shift)?;
            number("tkr_mono.base")?.checked_add(fraction).filter(|time| *time < CENTURY_NS)
        };
        let monotonic_ns = monotonic();
        let uptime = || monotonic_ns?.checked_add(number("offs_boot")?).filter(|time| *time < CENTURY_NS);
        let boot = || number("offs_real")?.cast_signed().checked_sub(number("offs_boot")?.cast_signed());
        Self { monotonic_ns, uptime_ns: uptime(), boot_time_s: boot().map(|boot| boot.div_euclid(SECOND_NS)) }
    }
}

/// The timekeeper inside `tk_core`, whose type has no name before 6.13.
fn timekeeper(probe: &Probe) -> Option<u64> {
    let offset = probe.field("tk_data", "timekeeper").map(|field| field.offset_bytes);
    let sequence =
        || probe.types.size_of("seqcount_raw_spinlock").or_else(|| probe.types.size_of("seqcount"));
    let offset = offset.or_else(|| Some(sequence()?.next_multiple_of(8)))?;
    let core = probe.symbol("tk_core").or_else(|| probe.symbol("timekeeper_data"))?;
    core.checked_add(offset)
}
