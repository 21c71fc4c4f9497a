//! A bare guest in a worker, with a network interface: it returns the frames that it receives.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;
use retrovisor_guest::{
    ClockPolicy, Gfn, Gpa, MacAddress, Machine as _, MachineError, MemoryIo as _, MemoryLayout, PageContent,
    StateIo as _, ZERO_PAGE,
};
use retrovisor_machine::kvm::{Boot, Hub, KvmConfig, NetBackend, NetConfig, RemoteConfig, RemoteMachine};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::bare::{self, MAIL};
use crate::worker;

/// Descriptors, available ring, used ring: of receiving, then of sending.
const RECEIVE: [u64; 3] = [0x20_0000, 0x20_1000, 0x20_2000];
const SEND: [u64; 3] = [0x20_3000, 0x20_4000, 0x20_5000];
const FRAME: u64 = 0x20_6000;
const FRAME_BYTES: u64 = 1600;
/// The type of a frame that no kernel sends on its own.
const KIND: [u8; 2] = [0x88, 0xb5];

// Finds the network interface, writes the registers that the mail page lists, and then returns each frame with its
// addresses swapped. Counts them, and keeps the link's status in the word after the count.
std::arch::global_asm!(
    r"
    .globl echo_start
    .globl echo_end
echo_start:
    mov r15, 0x100000            # mail
    mov r12, 0xd0000000
1:
    cmp dword ptr [r12 + 8], 1   # a network interface
    je 2f
    add r12, 0x1000
    jmp 1b
2:
    mov rcx, [r15 + 0x100]       # count of registers
    lea rbx, [r15 + 0x108]       # offset and value of each
3:
    test rcx, rcx
    jz 4f
    mov rdx, [rbx]
    mov eax, [rbx + 8]
    mov [r12 + rdx], eax
    add rbx, 16
    dec rcx
    jmp 3b
4:
    movzx eax, byte ptr [r12 + 0x106]
    mov [r15 + 72], rax
    mov rdi, 0x201000
    mov rsi, 0x202000
    mov cx, [rdi + 2]
    cmp cx, [rsi + 2]
    jne 4b                       # the buffer is still with the device
    mov rbx, 0x206000
    mov eax, [rbx + 12]
    mov cx, [rbx + 16]
    mov edx, [rbx + 18]
    mov r8w, [rbx + 22]
    mov [rbx + 12], edx
    mov [rbx + 16], r8w
    mov [rbx + 18], eax
    mov [rbx + 22], cx
    mov eax, [rsi + 8]           # as long as it came
    mov rbx, 0x203000
    mov [rbx + 8], eax
    mov rbx, 0x204000
    mov rdx, 0x205000
    inc word ptr [rbx + 2]
    mov dword ptr [r12 + 0x50], 1
5:
    mov cx, [rbx + 2]
    cmp cx, [rdx + 2]
    jne 5b
    inc qword ptr [r15 + 64]
    mov eax, [r12 + 0x60]
    mov [r12 + 0x64], eax
    inc word ptr [rdi + 2]
    mov dword ptr [r12 + 0x50], 0
    jmp 4b
echo_end:
"
);

unsafe extern "C" {
    static echo_start: u8;
    static echo_end: u8;
}

fn code() -> Boot {
    // SAFETY: both labels bound the bytes of one assembly block in this program.
    let image = unsafe {
        let length = (&raw const echo_end).offset_from_unsigned(&raw const echo_start);
        std::slice::from_raw_parts(&raw const echo_start, length).to_vec()
    };
    Boot::Flat { image, at: Gpa(MAIL.0 + 0x1000) }
}

/// The guest in a confined worker, running; `None`, with a message, without KVM.
fn launch(dir: &Path, backend: NetBackend, detached: bool) -> Option<RemoteMachine> {
    let machine = bare::config(MemoryLayout::flat(4 << 20).unwrap(), 1, code());
    let machine = KvmConfig { nets: vec![NetConfig { backend, mac: None }], ..machine };
    let config = RemoteConfig { machine, ..worker::config(dir, detached) };
    let mut machine = worker::launch_config(&config)?;
    prepare(&mut machine);
    machine.resume().unwrap();
    // Its driver is ready then: earlier frames are dropped.
    wait_link(&machine, true);
    Some(machine)
}

/// Writes the guest's initial memory.
fn prepare(machine: &mut RemoteMachine) {
    let mut put = |at: u64, words: &[u64]| {
        let mut page = ZERO_PAGE;
        for (place, word) in page[usize::try_from(at % 4096).unwrap()..].chunks_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        machine.write_page(Gfn(at >> 12), PageContent::Data(&page)).unwrap();
    };
    // Reset, acknowledge, driver, version 1 and nothing else; two queues of one descriptor; go, and look for frames.
    let mut registers = vec![(0x70, 0), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)];
    for (number, queue) in (0..).zip([RECEIVE, SEND]) {
        registers.extend([(0x30, number), (0x38, 1)]);
        registers.extend([(0x80, queue[0]), (0x90, queue[1]), (0xa0, queue[2]), (0x44, 1)]);
    }
    registers.extend([(0x70, 15), (0x50, 0)]);
    let mut mail = vec![registers.len() as u64];
    mail.extend(registers.iter().flat_map(|(offset, value)| [*offset, *value]));
    put(MAIL.0 + 0x100, &mail);
    put(RECEIVE[0], &[FRAME, FRAME_BYTES | 2 << 32]);
    put(SEND[0], &[FRAME, FRAME_BYTES]);
    // One buffer is offered, no frame yet.
    put(RECEIVE[1], &[1 << 16]);
}

/// Another station on the guest's network.
struct Station(OwnedFd);

impl Station {
    fn on_hub(hub: &Hub) -> Self {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let socket = socket.unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(hub.path()).unwrap()).unwrap();
        Self(socket)
    }

    /// The host's end of a tap, which is created.
    fn on_tap(name: &str) -> Self {
        let kind = i32::from(u16::from_be_bytes(KIND).to_be());
        // SAFETY: plain calls on a new socket; the structs are valid when zero, and live long enough.
        unsafe {
            let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, kind);
            assert!(socket >= 0, "{}", io::Error::last_os_error());
            let socket = OwnedFd::from_raw_fd(socket);
            let mut request: libc::ifreq = std::mem::zeroed();
            for (into, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *into = byte.cast_signed();
            }
            request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap();
            let up = libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request);
            assert_eq!(up, 0, "{}", io::Error::last_os_error());
            assert_eq!(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request), 0);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
            address.sll_protocol = u16::from_be_bytes(KIND).to_be();
            address.sll_ifindex = request.ifr_ifru.ifru_ifindex;
            let length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
            assert_eq!(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length), 0);
            Self(socket)
        }
    }

    fn send(&self, machine: &RemoteMachine, text: &str) {
        let [frame, _] = frames(machine, text);
        rustix::net::send(&self.0, &frame, SendFlags::NOSIGNAL).unwrap();
    }

    /// Whether the guest returns this text within the time.
    fn hears(&self, machine: &RemoteMachine, text: &str, patience: Duration) -> bool {
        let [_, expected] = frames(machine, text);
        let began = Instant::now();
        while began.elapsed() < patience {
            let mut bytes = [0; 2048];
            match rustix::net::recv(&self.0, &mut bytes[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return false,
                Ok((length, _)) if bytes[..length] == expected => return true,
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        false
    }

    /// Sends a text, and waits until it is returned.
    fn assert_talks(&self, machine: &RemoteMachine, text: &str) {
        self.send(machine, text);
        assert!(self.hears(machine, text, Duration::from_secs(20)), "{text:?} does not come back");
    }
}

/// A frame for the machine, and its answer.
fn frames(machine: &RemoteMachine, text: &str) -> [Vec<u8>; 2] {
    let guest = machine.nets().unwrap()[0].mac.bytes();
    let station = [2, 0, 0, 0, 0, 0x77];
    [[guest, station], [station, guest]].map(|addresses| {
        let mut frame = addresses.concat();
        frame.extend(KIND);
        frame.extend(text.as_bytes());
        frame.resize(frame.len().max(60), 0);
        frame
    })
}

/// The link status that the guest reads.
fn guest_sees_link(machine: &RemoteMachine) -> bool {
    let mut word = [0; 8];
    machine.memory().read(Gpa(MAIL.0 + 72), &mut word).unwrap();
    u64::from_le_bytes(word) == 1
}

fn wait_link(machine: &RemoteMachine, up: bool) {
    let began = Instant::now();
    while machine.nets().unwrap()[0].up != up || guest_sees_link(machine) != up {
        assert!(began.elapsed() < Duration::from_secs(20), "the link is not up: {up}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_guest_in_a_worker_talks_over_a_hub() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::serve(&dir.path().join("hub")).unwrap();
    let backend = NetBackend::Hub(hub.path().to_owned());
    let Some(mut machine) = launch(dir.path(), backend, false) else { return };
    let nets = machine.nets().unwrap();
    assert_eq!((nets.len(), nets[0].mac, nets[0].up), (1, MacAddress::of_machine("bare", 0), true));
    let station = Station::on_hub(&hub);
    for turn in 0..50 {
        station.assert_talks(&machine, &format!("turn {turn}"));
    }
    // A paused guest receives nothing, and frames that wait are dropped by a rollback.
    machine.pause().unwrap();
    let state = machine.capture_state().unwrap();
    station.send(&machine, "lost");
    assert!(!station.hears(&machine, "lost", Duration::from_millis(200)));
    machine.apply_state(&state, ClockPolicy::StandStill).unwrap();
    machine.resume().unwrap();
    station.assert_talks(&machine, "after");
    assert_eq!(bare::rounds(&machine, 0), 51, "the guest counts the frames");
    machine.pause().unwrap();
    station.send(&machine, "kept");
    machine.resume().unwrap();
    assert!(station.hears(&machine, "kept", Duration::from_secs(20)));

    // The receiving thread has its own additional filter.
    let tasks = std::fs::read_dir(format!("/proc/{}/task", machine.pid())).unwrap();
    let statuses = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let net = statuses.filter(|status| status.contains("Name:\tnet\n")).collect::<Vec<_>>();
    assert_eq!(net.len(), 1);
    assert!(net[0].contains("Seccomp_filters:\t3\n"), "{}", net[0]);
}

#[test]
fn a_worker_outlives_its_hub_and_is_given_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub");
    let hub = Hub::serve(&path).unwrap();
    let backend = NetBackend::Hub(path.clone());
    let Some(machine) = launch(dir.path(), backend.clone(), true) else { return };
    Station::on_hub(&hub).assert_talks(&machine, "first");
    drop(hub);
    wait_link(&machine, false);
    let pid = machine.pid();
    drop(machine);
    // The next managing process has a hub at the same path: the worker cannot connect to it itself.
    let hub = Hub::serve(&path).unwrap();
    let mut machine = RemoteMachine::attach("bare", &dir.path().join("m")).unwrap();
    assert_eq!(machine.pid(), pid);
    std::thread::sleep(Duration::from_millis(700));
    wait_link(&machine, false);
    machine.plug(0, &backend).unwrap();
    wait_link(&machine, true);
    let station = Station::on_hub(&hub);
    station.assert_talks(&machine, "second");
    // Connected during a pause, while the old hub still exists.
    machine.pause().unwrap();
    let other = Hub::serve(&dir.path().join("other")).unwrap();
    machine.plug(0, &NetBackend::Hub(other.path().to_owned())).unwrap();
    machine.resume().unwrap();
    Station::on_hub(&other).assert_talks(&machine, "third");
    station.send(&machine, "nobody");
    assert!(!station.hears(&machine, "nobody", Duration::from_millis(200)));
    let error = machine.plug(7, &backend).unwrap_err();
    assert!(error.to_string().contains("no network interface number 7"), "{error}");
    let error = machine.plug(0, &NetBackend::Hub("/nonexistent/hub".into())).unwrap_err();
    assert!(matches!(error, MachineError::Config { .. }), "{error}");
    machine.quit();
}

#[test]
fn a_guest_in_a_worker_talks_over_a_tap() {
    // A network namespace for this thread: nothing of the host's is changed.
    // SAFETY: of what threads share, only the network is left.
    if let Err(error) = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) } {
        eprintln!("SKIPPED: no network namespace to make a tap in: {error}");
        return;
    }
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/net/tun") {
        eprintln!("SKIPPED: no taps: /dev/net/tun: {error}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(machine) = launch(dir.path(), NetBackend::Tap("rvtap0".into()), false) else { return };
    let station = Station::on_tap("rvtap0");
    for turn in 0..20 {
        station.assert_talks(&machine, &format!("turn {turn}"));
    }
    let other = tempfile::tempdir().unwrap();
    let busy = RemoteMachine::launch(&RemoteConfig {
        machine: KvmConfig {
            nets: vec![NetConfig { backend: NetBackend::Tap("rvtap0".into()), mac: None }],
            ..bare::config(MemoryLayout::flat(4 << 20).unwrap(), 1, code())
        },
        ..worker::config(other.path(), false)
    });
    let error = busy.err().unwrap().to_string();
    assert!(error.contains("Another machine uses it"), "{error}");
}
