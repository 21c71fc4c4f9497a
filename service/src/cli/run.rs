use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use retrovisor_guest::MacAddress;
use retrovisor_proto::v1::network_interface::Network;
use retrovisor_proto::v1::{NetworkInterface, RunMachineRequest};

use super::global::{Global, print_json};
use super::show;
use crate::client;
use crate::error::CliError;

/// Starts a virtual machine under manager.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retrovisor run web --kernel vmlinuz --initrd initramfs.cpio.gz --disk web.raw --every 500ms
  retrovisor run fast --driver kvm --kernel vmlinuz --initrd i.gz --vcpus 2 --every 50ms
  retrovisor run db --driver kvm --kernel vmlinuz --initrd i.gz --net lan
  retrovisor run big --kernel vmlinuz --initrd i.gz --memory 4G --vcpus 4 --append 'console=ttyS0 quiet'")]
pub(crate) struct RunArgs {
    /// Name for the machine
    name: String,
    /// Linux kernel (bzImage)
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM file system
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, default_value = "console=ttyS0 quiet panic=-1")]
    append: String,
    /// Disk image; it is only read, what the guest writes is kept beside it. May be given several times
    #[arg(long = "disk", value_name = "FILE")]
    disks: Vec<PathBuf>,
    /// Network interface of a microVM: HUB (made on first use; machines on one hub talk), tap:NAME, either with ,mac=ADDRESS.
    /// May be given several times
    #[arg(long = "net", value_name = "NETWORK", value_parser = parse_net)]
    nets: Vec<NetworkInterface>,
    /// What runs it: kvm is our own microVM and needs KVM on hardware, qemu runs everywhere; auto chooses
    #[arg(long, default_value = "auto", value_parser = ["auto", "kvm", "qemu"])]
    driver: String,
    /// Memory, such as 512M or 2G
    #[arg(long, default_value = "512M", value_parser = parse_size)]
    memory: u64,
    /// Number of vCPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    vcpus: u32,
    /// Interval between checkpoints, such as 200ms or 2s; 0 for none
    #[arg(long, default_value = "1s", value_parser = parse_interval)]
    every: Duration,
}

pub(super) async fn run(args: RunArgs, global: &Global) -> Result<(), CliError> {
    let absolute = |path: &Path| -> Result<String, CliError> {
        std::path::absolute(path)
            .map(|path| path.to_string_lossy().into_owned())
            .map_err(|error| CliError::failed(format!("{}: {error}", path.display())))
    };
    let request = RunMachineRequest {
        machine: args.name,
        kernel: absolute(&args.kernel)?,
        initrd: args.initrd.as_deref().map(absolute).transpose()?.unwrap_or_default(),
        append: args.append,
        disks: args.disks.iter().map(|disk| absolute(disk)).collect::<Result<_, _>>()?,
        memory_bytes: args.memory,
        vcpus: args.vcpus,
        every_ms: interval_ms(args.every),
        driver: args.driver,
        interfaces: args.nets,
    };
    let answer = client::daemon(&global.store).await?.machines().run_machine(request).await?.into_inner();
    let machine = answer.machine.unwrap_or_default();
    if global.json {
        return print_json(&machine);
    }
    show::print(&machine);
    println!(
        "Next: retrovisor log {0} · retrovisor inspect {0} · retrovisor rollback {0} --dry-run",
        machine.name
    );
    Ok(())
}

/// Milliseconds; an interval of over 49 days is as good as that.
pub(super) fn interval_ms(interval: Duration) -> u32 {
    u32::try_from(interval.as_millis()).unwrap_or(u32::MAX)
}

/// `512M`, `2G`, `1048576`.
fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.trim_end_matches(['B', 'b']).trim_end_matches('i') {
        rest if rest.ends_with(['K', 'k']) => (&rest[..rest.len() - 1], 10),
        rest if rest.ends_with(['M', 'm']) => (&rest[..rest.len() - 1], 20),
        rest if rest.ends_with(['G', 'g']) => (&rest[..rest.len() - 1], 30),
        rest => (rest, 0),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{text}` is not a size: write 512M or 2G"))?;
    let bytes = number.checked_shl(shift).filter(|bytes| bytes >> shift == number);
    match bytes {
        Some(bytes) if (16 << 20..=16 << 40).contains(&bytes) => Ok(bytes),
        _ => Err(format!("`{text}` is not between 16M and 16T")),
    }
}

/// `lan`, `hub:lan`, `tap:tap0`, `lan,mac=02:00:5e:10:00:01`. The daemon says what is wrong with names.
fn parse_net(text: &str) -> Result<NetworkInterface, String> {
    let (network, address) = match text.split_once(',') {
        None => (text, ""),
        Some((network, option)) => match option.strip_prefix("mac=") {
            Some(address) => (network, address),
            None => return Err(format!("`{option}` is no option of a network: write mac=02:00:5e:10:00:01")),
        },
    };
    if !address.is_empty() || text.ends_with("mac=") {
        let _address: MacAddress = address.parse()?;
    }
    let network = match network.split_once(':') {
        None => Network::Hub(network.to_owned()),
        Some(("hub", name)) => Network::Hub(name.to_owned()),
        Some(("tap", name)) => Network::Tap(name.to_owned()),
        Some((kind, _)) => return Err(format!("`{kind}` is no kind of network: write HUB or tap:NAME")),
    };
    let (Network::Hub(name) | Network::Tap(name)) = &network;
    if name.is_empty() {
        return Err("a network has a name: write HUB or tap:NAME".to_owned());
    }
    Ok(NetworkInterface { network: Some(network), address: address.to_owned(), link_up: false })
}

/// `200ms`, `2s`, `1m`, `0`.
pub(super) fn parse_interval(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let number: u64 =
        digits.parse().map_err(|_| format!("`{text}` is not an interval: write 200ms, 2s, 1m or 1h"))?;
    let interval = match unit {
        "ms" => Duration::from_millis(number),
        "" if number == 0 => Duration::ZERO,
        "s" => Duration::from_secs(number),
        "m" | "min" => Duration::from_secs(number.saturating_mul(60)),
        "h" => Duration::from_secs(number.saturating_mul(3600)),
        _ => return Err(format!("`{text}` has no unit that I know: write 200ms, 2s, 1m or 1h")),
    };
    if interval.is_zero() || interval >= Duration::from_millis(20) {
        Ok(interval)
    } else {
        Err("an interval below 20ms leaves the guest no time to run".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_nonsense_is_refused() {
        let net = |text| parse_net(text).map(|net| (net.network.unwrap(), net.address));
        let (lan, mac) = (Network::Hub("lan".to_owned()), "02:00:5e:10:00:01".to_owned());
        assert_eq!(net("lan"), Ok((lan.clone(), String::new())));
        assert_eq!(net("hub:lan,mac=02:00:5e:10:00:01"), Ok((lan, mac)));
        assert_eq!(net("tap:tap0"), Ok((Network::Tap("tap0".to_owned()), String::new())));
        for wrong in ["", "tap:", "user:1", "lan,", "lan,mac=", "lan,mac=01:00:5e:00:00:01", "lan,mtu=9000"] {
            assert!(parse_net(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_and_intervals_are_read_and_nonsense_is_refused() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert!(
            ["", "M", "-1M", "1M", "99999999999999999999G", "18446744073709551615K"]
                .iter()
                .all(|s| parse_size(s).is_err())
        );
        assert_eq!(parse_interval("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(parse_interval("0"), Ok(Duration::ZERO));
        assert!(["", "5", "1ms", "s", "3 parsecs"].iter().all(|s| parse_interval(s).is_err()));
    }
}
