//! The command line.

use std::path::PathBuf;

/// What `workload --help` prints.
pub(crate) const USAGE: &str = "\
usage: workload [--interval-ms 100] [--memory-mib 8] [--dir DIR] [--report-every TICKS] [--ticks TICKS]
                [--tell-time 0|1]
       workload runaway [--burners 2] [--memory-mib 48] [--spawn-every-ms 50] [--seconds SECONDS]

Without a command: ticks, rewrites and checks its memory and a file in DIR, and prints a line now and then.
--tell-time 1: prints its clocks as well, and checks the processor's extended registers.
runaway: burns CPU, starts children in a steady loop and grows memory up to --memory-mib for each burner.";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Tick and check.
    Steady(Steady),
    /// Misbehave.
    Runaway(Runaway),
    /// One CPU burner of a runaway.
    Burn(Runaway),
    /// One short-lived child of a runaway.
    Linger(Runaway),
    /// Print the usage.
    Help,
}

/// Options of the steady workload.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Steady {
    /// Milliseconds from one tick to the next.
    pub(crate) interval_ms: u64,
    /// Size of the buffer.
    pub(crate) memory_mib: usize,
    /// Folder of the file; none: no file is kept.
    pub(crate) dir: Option<PathBuf>,
    /// Ticks from one console line to the next.
    pub(crate) report_every: u64,
    /// Ends after so many ticks; none: never.
    pub(crate) ticks: Option<u64>,
    /// Also prints its clocks, and checks extended registers.
    pub(crate) tell_time: bool,
}

/// Options of the runaway.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Runaway {
    /// How to start this program again, under the same name.
    pub(crate) program: String,
    /// Processes that burn a CPU each.
    pub(crate) burners: usize,
    /// Memory at which one burner stops growing.
    pub(crate) memory_mib: usize,
    /// Milliseconds from one child to the next.
    pub(crate) spawn_every_ms: u64,
    /// Ends after so many seconds; none: never.
    pub(crate) seconds: Option<u64>,
}

/// Reads the arguments, the program's own name first. A program called `runaway` is `workload runaway`.
pub(crate) fn parse(arguments: Vec<String>) -> Result<Command, String> {
    let mut arguments = arguments.into_iter().peekable();
    let program = arguments.next().unwrap_or_else(|| "workload".to_owned());
    let mut verb = None;
    if program.rsplit('/').next() == Some("runaway") {
        verb = Some("runaway".to_owned());
    }
    if let Some(word) = arguments.next_if(|word| !word.starts_with('-')) {
        verb = Some(word);
    }
    let mut steady = Steady {
        interval_ms: 100,
        memory_mib: 8,
        dir: None,
        report_every: 10,
        ticks: None,
        tell_time: false,
    };
    let mut runaway = Runaway { program, burners: 2, memory_mib: 48, spawn_every_ms: 50, seconds: None };
    while let Some(option) = arguments.next() {
        if option == "--help" || option == "-h" {
            return Ok(Command::Help);
        }
        let value = arguments.next().ok_or_else(|| format!("{option} needs a value"))?;
        match (option.as_str(), verb.is_some()) {
            ("--interval-ms", false) => steady.interval_ms = number(&option, &value, 1, 60_000)?,
            ("--memory-mib", false) => steady.memory_mib = size(&option, &value, 1024)?,
            ("--dir", false) => steady.dir = Some(PathBuf::from(value)),
            ("--report-every", false) => steady.report_every = number(&option, &value, 1, 1_000_000)?,
            ("--ticks", false) => steady.ticks = Some(number(&option, &value, 1, u64::MAX)?),
            ("--tell-time", false) => steady.tell_time = number(&option, &value, 0, 1)? == 1,
            ("--burners", true) => runaway.burners = size(&option, &value, 64)?,
            ("--memory-mib", true) => runaway.memory_mib = size(&option, &value, 1024)?,
            ("--spawn-every-ms", true) => runaway.spawn_every_ms = number(&option, &value, 1, 60_000)?,
            ("--seconds", true) => runaway.seconds = Some(number(&option, &value, 1, 86_400)?),
            _ => return Err(format!("unknown option {option}")),
        }
    }
    match verb.as_deref() {
        None => Ok(Command::Steady(steady)),
        Some("runaway") => Ok(Command::Runaway(runaway)),
        Some("burn") => Ok(Command::Burn(runaway)),
        Some("linger") => Ok(Command::Linger(runaway)),
        Some(other) => Err(format!("unknown command {other}")),
    }
}

fn number(option: &str, value: &str, least: u64, most: u64) -> Result<u64, String> {
    match value.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("{option} takes a whole number from {least} to {most}, not {value}")),
    }
}

fn size(option: &str, value: &str, most: u32) -> Result<usize, String> {
    let number = number(option, value, 1, u64::from(most))?;
    usize::try_from(number).map_err(|_| format!("{option} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_steady_options_are_read() {
        let command = parse(words("/bin/workload --interval-ms 20 --memory-mib 2 --dir /data --ticks 7"));
        let expected = Steady {
            interval_ms: 20,
            memory_mib: 2,
            dir: Some(PathBuf::from("/data")),
            report_every: 10,
            ticks: Some(7),
            tell_time: false,
        };
        assert_eq!(command, Ok(Command::Steady(expected)));
    }

    #[test]
    fn the_name_runaway_is_the_command_runaway() {
        let Ok(Command::Runaway(by_name)) = parse(words("/bin/runaway --burners 3")) else {
            panic!("not a runaway")
        };
        assert_eq!((by_name.burners, by_name.program.as_str()), (3, "/bin/runaway"));
        assert!(matches!(parse(words("workload runaway")), Ok(Command::Runaway(_))));
        assert!(matches!(parse(words("runaway burn --memory-mib 4")), Ok(Command::Burn(_))));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_name() {
        for (line, part) in [
            ("workload --interval-ms 0", "--interval-ms takes a whole number from 1"),
            ("workload --memory-mib", "--memory-mib needs a value"),
            ("workload --burners 2", "unknown option --burners"),
            ("workload gallop", "unknown command gallop"),
            ("workload runaway --dir /data", "unknown option --dir"),
        ] {
            let reason = parse(words(line)).expect_err(line);
            assert!(reason.contains(part), "{line}: {reason}");
        }
    }
}
