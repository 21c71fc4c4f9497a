use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use retrovisor_guest::MacAddress;
use retrovisor_proto::v1::network_interface::Network;
use retrovisor_proto::v1::{NetworkInterface, RunMachineRequest};

use super::global::{Global, print_json};
use super::interval::{interval_ms, parse_interval, warn_if_none};
use super::show;
use crate::client;
use crate::error::CliError;
use crate::terminal::paragraph;

/// Starts a virtual machine and manages it.
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
    /// Disk image; it is only read, what the guest writes goes to an overlay. May be given several times
    #[arg(long = "disk", value_name = "FILE")]
    disks: Vec<PathBuf>,
    /// Network interface of a microVM: HUB (created on first use; connects machines), tap:NAME, either with
    /// ,mac=ADDRESS. May be given several times
    #[arg(long = "net", value_name = "NETWORK", value_parser = parse_net)]
    nets: Vec<NetworkInterface>,
    /// kvm is Retrovisor's own microVM and needs KVM on hardware, qemu runs everywhere; auto prefers kvm
    #[arg(long, default_value = "auto", value_parser = ["auto", "kvm", "qemu"])]
    driver: String,
    /// Memory, such as 512M or 2G
    #[arg(long, default_value = "512M", value_parser = parse_size)]
    memory: u64,
    /// Number of vCPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    vcpus: u32,
    /// Interval between automatic checkpoints, such as 200ms, 0.5s or 2s; 0 for none
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
    let answer = client::daemon(&global.store()?).await?.machines().run_machine(request).await?.into_inner();
    let machine = answer.machine.unwrap_or_default();
    if global.json {
        return print_json(&machine);
    }
    show::print(&machine);
    warn_if_none(&machine);
    paragraph::print(&format!(
        "Next: retrovisor log {0} · retrovisor inspect {0} · retrovisor rollback {0} --dry-run",
        machine.name
    ));
    Ok(())
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
    fn sizes_are_read_and_nonsense_is_refused() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert!(
            ["", "M", "-1M", "1M", "99999999999999999999G", "18446744073709551615K"]
                .iter()
                .all(|s| parse_size(s).is_err())
        );
    }
}
