use std::sync::Arc;
use std::time::{Duration, Instant};

use retrovisor_guest::Machine as _;
use retrovisor_machine::kvm::{
    ConsoleInput, ConsoleOutput, Hub, KvmConfig, KvmMachine, NetBackend, NetConfig,
};
use retrovisor_snapshot::{Access, CheckpointRequest, Recorder, RollbackRequest, Store};

use crate::listener::Listener;
use crate::{guest, lab};

/// Waits until what was said from `offset` on holds `words`, and gives the offset of what follows.
fn hear(machine: &mut KvmMachine, output: &ConsoleOutput, offset: u64, words: &str) -> u64 {
    let began = Instant::now();
    loop {
        let (said, next) = output.since(offset);
        let text = String::from_utf8_lossy(&said).replace('\r', "");
        if text.contains(words) {
            return next;
        }
        assert!(!machine.run_state().has_ended(), "{:?}\n{text}", machine.ended());
        assert!(began.elapsed() < guest::PATIENCE, "no {words:?} is said:\n{text}");
        let _ = output.wait(next, Duration::from_millis(500));
    }
}

fn say(input: &ConsoleInput, words: &str) {
    assert_eq!(input.type_in(words.as_bytes()), words.len());
}

#[test]
fn a_guest_that_is_typed_to_goes_back_and_hears_of_a_new_generation() {
    if !lab::boots_here() {
        return;
    }
    let config = KvmConfig { channel: true, ..guest::config("talker", "console-shell") };
    let mut machine = KvmMachine::launch(&config).unwrap();
    let (serial_in, serial_out) = (machine.console_input(), machine.console_output());
    let (channel_in, channel_out) = machine.channel().unwrap();
    Listener::default().wait_tick(&mut machine);
    let ends = [(&serial_in, &serial_out), (&channel_in, &channel_out)];
    for (input, output) in ends {
        let offset = output.end();
        say(input, "echo answer $((6 * 7))\n");
        hear(&mut machine, output, offset, "answer 42\n");
    }
    // Far more than the port holds, in one go: it waits until the guest reads it.
    for (input, output) in ends {
        let offset = output.end();
        say(input, "turns=0\n");
        say(input, &"turns=$((turns + 1))\n".repeat(300));
        say(input, "echo counted $turns\n");
        hear(&mut machine, output, offset, "counted 300\n");
        assert_eq!(input.waiting_bytes(), 0);
    }

    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path(), Access::Create).unwrap());
    let id = store.catalogue().add_machine(machine.identity()).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
    let taken = recorder.checkpoint(&mut machine, &CheckpointRequest::default()).unwrap();
    for (input, output) in ends {
        let offset = output.end();
        say(input, "turns=7; echo now $turns\n");
        hear(&mut machine, output, offset, "now 7\n");
    }
    recorder.rollback(&mut machine, taken.record.id, &RollbackRequest::default()).unwrap();
    for (input, output) in ends {
        let offset = output.end();
        say(input, "echo back $turns\n");
        hear(&mut machine, output, offset, "back 300\n");
    }
    is_notified_of_a_new_generation(&mut machine);
}

/// How often the guest's fetcher said that a file arrived whole.
fn fetched(machine: &KvmMachine) -> usize {
    let console = String::from_utf8_lossy(&machine.console()).into_owned();
    assert!(!console.contains("CORRUPT"), "a file arrived damaged:\n{console}");
    console
        .lines()
        .filter(|line| line.trim_end().starts_with("net ") && line.trim_end().ends_with(" ok"))
        .count()
}

fn wait_fetched(machine: &mut KvmMachine, more: usize) {
    let before = fetched(machine);
    let began = Instant::now();
    while fetched(machine) < before + more {
        assert!(!machine.run_state().has_ended(), "{:?}", machine.ended());
        let console = String::from_utf8_lossy(&machine.console()).into_owned();
        assert!(began.elapsed() < guest::PATIENCE, "nothing is fetched:\n{console}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn two_machines_on_a_hub_talk_while_one_goes_back_and_forth() {
    if !lab::boots_here() {
        return;
    }
    let long = lab::is_long("most rollbacks of a machine that talks");
    let (checkpoints, rollbacks) = if long { (400, 40) } else { (10, 3) };
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::serve(&dir.path().join("hub")).unwrap();
    let launch = |name, append| {
        let nets = vec![NetConfig { backend: NetBackend::Hub(hub.path().to_owned()), mac: None }];
        KvmMachine::launch(&KvmConfig { nets, vcpus: 1, ..guest::config(name, append) }).unwrap()
    };
    let mut server = launch("server", "net=10.9.0.1/24");
    let mut client = launch("client", "net=10.9.0.2/24 fetch=10.9.0.1");
    let (server_ears, mut client_ears) = (Listener::default(), Listener::default());
    server_ears.wait_tick(&mut server);
    wait_fetched(&mut client, 3);

    let store = Arc::new(Store::open(&dir.path().join("store"), Access::Create).unwrap());
    let id = store.catalogue().add_machine(client.identity()).unwrap().id;
    let mut recorder = Recorder::new(Arc::clone(&store), id).unwrap();
    let mut taken = Vec::new();
    for _ in 0..checkpoints {
        let report = recorder.checkpoint(&mut client, &CheckpointRequest::default()).unwrap();
        taken.push(report.record.id);
        std::thread::sleep(Duration::from_millis(50));
    }
    for hop in 0..rollbacks {
        let target = taken[hop * 7 % taken.len()];
        client_ears.back(&mut recorder, &mut client, target);
        wait_fetched(&mut client, 2);
    }
    client_ears.assert_unnoticed(&client);
    server_ears.assert_unnoticed(&server);
    let traffic = hub.traffic();
    println!("{} frames forwarded, {} lost", traffic.forwarded_frames, traffic.lost_frames);
    assert!(traffic.forwarded_frames > 1000);
}

#[test]
fn kernels_with_a_driver_make_new_random_numbers_for_a_new_generation() {
    if !lab::boots_here()
        || !lab::is_long("new random numbers for a new generation, under kernels that do that")
    {
        return;
    }
    let mut reseeded = 0;
    for other in lab::other_kernels() {
        let mut machine = KvmMachine::launch(&guest::under(&other, "console-shell")).unwrap();
        Listener::default().wait_tick(&mut machine);
        let has_driver = is_notified_of_a_new_generation(&mut machine);
        // Debian's kernels from 6.12 on have it built in, and the plain one of 6.1.
        assert_eq!(
            has_driver,
            !["bullseye-cloud", "bullseye-plain", "bookworm-cloud"].contains(&&other.name[..])
        );
        reseeded += u32::from(has_driver);
        println!("{}: {}", other.name, if has_driver { "reseeded" } else { "notified, and has no driver" });
    }
    assert!(reseeded > 0, "no kernel with a driver was here");
}

/// Whether the guest, whose console is a shell, has a driver for it; if so it must have reseeded.
fn is_notified_of_a_new_generation(machine: &mut KvmMachine) -> bool {
    let (input, output) = (machine.console_input(), machine.console_output());
    let command = "sed -n 's/.*ACPI:Ged/& notified/p' /proc/interrupts | tr -s ' '; \
        ls -d /sys/bus/*/drivers/vmgenid 2>/dev/null | sed 's/.*/has a dri''ver/'; dmesg | grep -c 'virtual machine fork'; echo done\n";
    let state = |machine: &mut KvmMachine| {
        let offset = output.end();
        say(&input, command);
        hear(machine, &output, offset, "\ndone\n");
        String::from_utf8_lossy(&output.since(offset).0).replace('\r', "")
    };
    let before = state(machine);
    assert_eq!(interrupts(&before), Some(0), "the guest has the line, and was not notified:\n{before}");
    machine.pause().unwrap();
    let id = machine.generation_id().unwrap();
    assert_ne!(id, [0; 16]);
    machine.set_generation_id([7; 16]).unwrap();
    assert_eq!(machine.generation_id().unwrap(), [7; 16]);
    machine.resume().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let after = state(machine);
    assert_eq!(interrupts(&after), Some(1), "{after}");
    let has_driver = before.contains("has a driver");
    if has_driver {
        assert!(before.contains("\n0\n") && after.contains("\n1\n"), "before:\n{before}\nafter:\n{after}");
    }
    println!("after the change the guest says:\n{after}");
    has_driver
}

/// How often the line that signals the change was raised, on all vCPUs.
fn interrupts(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.ends_with(" notified"))?;
    let (_, counts) = line.split_once(": ")?;
    Some(counts.split(' ').map_while(|count| count.parse::<u64>().ok()).sum())
}
