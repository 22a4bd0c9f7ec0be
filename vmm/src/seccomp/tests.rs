#![expect(unsafe_code, reason = "asks for what it must not get")]
//! What is on the lists is enough for devices under attack; what is not ends the process.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::process::ExitStatus;
use std::sync::Arc;

use kiai_devices::platform::Doorbells;
use kiai_devices::platform::Interrupts;
use kiai_devices::platform::Mapper;
use kiai_devices::platform::MsiMessage;
use kiai_devices::platform::PluggableRam;
use kiai_devices::testing::FakePlatform;
use kiai_devices::testing::Machine;
use kiai_devices::testing::Stage;
use kiai_devices::testing::Subject;
use kiai_devices::testing::random_bytes;
use kiai_devices::virtio::mem::MemRegion;
use kiai_fs::testing::FS;
use libc::c_long;
use vm_memory::GuestAddressSpace;
use vm_memory::GuestMemoryBackend;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::kvm;
use crate::memory;

/// Says that a child of these tests is one.
const CHILD: &str = "KIAI_TEST_CONFINED";

/// Runs this test again in a process of its own, which does `act` on a thread of that kind; what it wrote to
/// its standard error, and how it ended.
fn in_a_child(test: &str, kind: Kind, act: fn()) -> Option<(ExitStatus, String)> {
    let name = format!("{kind:?}");
    match std::env::var(CHILD) {
        Ok(this) => {
            if this == name {
                prepare().unwrap();
                let confined = std::thread::spawn(move || {
                    confine(kind).unwrap();
                    act();
                });
                confined.join().unwrap();
                std::process::exit(0);
            }
            None
        }
        Err(_) => {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", &format!("seccomp::tests::{test}"), "--nocapture"]);
            let ended = command.env(CHILD, name).output().unwrap();
            Some((ended.status, String::from_utf8_lossy(&ended.stderr).into_owned()))
        }
    }
}

/// Runs this test again in a process of its own, whose threads confine themselves.
fn assert_passes_in_a_child(test: &str) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("seccomp::tests::{test}"), "--nocapture"]);
    let ended = command.env(CHILD, "all").output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

#[test]
fn a_call_that_is_not_listed_ends_the_process_and_is_named() {
    let act = || {
        let _ = std::net::UdpSocket::bind("127.0.0.1:0");
    };
    for kind in Kind::all() {
        let test = "a_call_that_is_not_listed_ends_the_process_and_is_named";
        let Some((ended, said)) = in_a_child(test, kind, act) else { continue };
        let number = format!("system call {:04}", libc::SYS_socket);
        assert!(ended.signal() == Some(libc::SIGABRT) && said.contains(&number), "{kind:?}: {said}");
    }
}

/// The C library blocks signals while it starts a thread or a program: the kernel then ends the process by itself.
fn assert_killed(kind: Kind, (ended, said): (ExitStatus, String)) {
    let killed = matches!(ended.signal(), Some(libc::SIGSYS | libc::SIGABRT));
    assert!(killed, "{kind:?}: {ended}: {said}");
}

#[test]
fn no_thread_starts_programs() {
    let act = || drop(Command::new("true").status());
    for kind in Kind::all() {
        let Some(ended) = in_a_child("no_thread_starts_programs", kind, act) else { continue };
        assert_killed(kind, ended);
    }
}

#[test]
fn no_thread_starts_threads() {
    let act = || drop(std::thread::Builder::new().spawn(|| println!("started")));
    for kind in Kind::all() {
        let Some(ended) = in_a_child("no_thread_starts_threads", kind, act) else { continue };
        assert_killed(kind, ended);
    }
}

#[test]
fn only_a_file_server_opens_files() {
    let act = || {
        let error = std::fs::File::open("/etc/passwd").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    };
    for kind in Kind::all().filter(|kind| *kind != Kind::Device(Role::Files)) {
        let Some((ended, said)) = in_a_child("only_a_file_server_opens_files", kind, act) else { continue };
        assert!(ended.success(), "{kind:?}: {said}");
    }
}

#[test]
fn a_panic_leaves_its_thread_alive() {
    let act = || {
        // SAFETY: the process has no other thread that looks at its environment.
        unsafe { std::env::set_var("RUST_BACKTRACE", "1") };
        assert!(std::panic::catch_unwind(|| panic!("told to")).is_err());
        println!("goes on");
    };
    for kind in Kind::all() {
        let Some((ended, said)) = in_a_child("a_panic_leaves_its_thread_alive", kind, act) else { continue };
        assert!(ended.success() && said.contains("told to"), "{kind:?}: {said}");
    }
}

#[test]
fn a_signal_for_the_process_is_for_its_other_threads() {
    extern "C" fn write_to_a_socket(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: no address is given; send may be called from a signal handler.
        unsafe { libc::sendto(-1, std::ptr::null(), 0, 0, std::ptr::null(), 0) };
    }
    let act = || {
        vmm_sys_util::signal::register_signal_handler(libc::SIGTERM, write_to_a_socket).unwrap();
        // SAFETY: a signal that has a handler.
        unsafe { libc::raise(libc::SIGTERM) };
    };
    for kind in Kind::all() {
        let test = "a_signal_for_the_process_is_for_its_other_threads";
        let Some((ended, said)) = in_a_child(test, kind, act) else { continue };
        assert!(ended.success(), "{kind:?}: {said}");
    }
}

#[test]
fn a_devices_thread_gives_memory_back() {
    let act = || {
        // Of the thread's own arena, and enough that the C library shrinks it afterwards.
        let blocks: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 64 << 10]).collect();
        drop(std::hint::black_box(blocks));
    };
    let test = "a_devices_thread_gives_memory_back";
    let Some((ended, said)) = in_a_child(test, SHARED, act) else { return };
    assert!(ended.success(), "{said}");
}

#[test]
fn memory_that_can_be_executed_is_none_to_be_had() {
    let act = || {
        let prot = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::EXEC;
        let flags = rustix::mm::MapFlags::PRIVATE;
        // SAFETY: a new mapping wherever the kernel likes; it is not used.
        let _ = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), 4096, prot, flags) };
    };
    let test = "memory_that_can_be_executed_is_none_to_be_had";
    let Some((ended, said)) = in_a_child(test, SHARED, act) else { return };
    assert!(
        ended.signal() == Some(libc::SIGABRT) && said.contains(&format!("system call {:04}", libc::SYS_mmap)),
        "{said}"
    );
}

/// Sessions of a hostile driver: its thread is the vCPU's, and the devices' threads are their own kinds.
fn under_attack(subject: &Subject) {
    const SESSIONS: u64 = 100;
    for seed in 0..SESSIONS {
        let platform = FakePlatform::confined(|role| confine(role.into()));
        let stage = Stage::set_on(Machine::on(platform), subject);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                confine(Kind::Vcpu).unwrap();
                stage.play(&random_bytes(seed));
            });
        });
        stage.strike();
    }
}

macro_rules! under_attack {
    ($device:ident) => {
        under_attack(&kiai_devices::testing::devices::$device);
    };
}

#[test]
fn devices_under_attack_need_nothing_else() {
    if std::env::var(CHILD).is_ok() {
        prepare().unwrap();
        kiai_devices::for_each_device!(under_attack);
        under_attack(&FS);
        return;
    }
    assert_passes_in_a_child("devices_under_attack_need_nothing_else");
}

/// What register writes and the driver of plugged memory make KVM do, with KVM itself.
fn ask_kvm() {
    const REGION: MemRegion = MemRegion { address: 4 << 30, length: 128 << 20, block: 2 << 20 };
    let (memory, _reservation) = memory::allocate(32, false).unwrap();
    let (_kvm, vm) = kvm::open().unwrap();
    let slots = kvm::equip(&vm, &memory::regions(&memory.memory())).unwrap();
    let slots = Arc::new(slots);
    let vector = kvm::KvmInterrupts::new(vm.clone()).vectors(1).unwrap().remove(0);
    let (doorbells, event) = (kvm::KvmDoorbells(vm), EventFd::new(0).unwrap());
    let ram = memory::Ram::new(&[]);
    let hotplug = memory::HotplugRam::new(REGION, false, memory.clone(), slots.clone(), ram).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            confine(Kind::Vcpu).unwrap();
            vector.route(Some(MsiMessage { address: 0xfee0_0000, data: 0x20 })).unwrap();
            vector.trigger().unwrap();
            vector.route(None).unwrap();
            doorbells.add(1 << 36, &event).unwrap();
            doorbells.remove(1 << 36, &event).unwrap();
            let host = memory.memory().iter().next().unwrap().as_ptr() as u64;
            slots.map(1 << 36, host, 4096, false).unwrap();
            slots.unmap(1 << 36, 4096).unwrap();
        });
        scope.spawn(|| {
            confine(SHARED).unwrap();
            hotplug.plug(0, 2 * REGION.block).unwrap();
            hotplug.unplug(0, 2 * REGION.block).unwrap();
        });
    });
}

#[test]
fn kvm_is_asked_for_what_devices_need() {
    if !std::path::Path::new("/dev/kvm").exists() {
        kiai_skip::skip("no /dev/kvm");
        return;
    }
    if std::env::var(CHILD).is_ok() {
        prepare().unwrap();
        ask_kvm();
        return;
    }
    assert_passes_in_a_child("kvm_is_asked_for_what_devices_need");
}

/// What no list may have, with such arguments, and which may.
type Forbidden = (c_long, [u64; 3], &'static [Kind]);

const NOBODY: &[Kind] = &[];
const SHARED: Kind = Kind::Device(Role::Shared);
const DISK: Kind = Kind::Device(Role::Disk);
const NETWORK: Kind = Kind::Device(Role::Network);
const SOCKETS: Kind = Kind::Device(Role::Sockets);
const FILES: Kind = Kind::Device(Role::Files);

const fn ioctl(request: u64, of: &'static [Kind]) -> Forbidden {
    (libc::SYS_ioctl, [u64::MAX, request, 0], of)
}

const FORBIDDEN: &[Forbidden] = &[
    // Files, sockets, programs, threads and other processes.
    (libc::SYS_open, [0; 3], NOBODY),
    (libc::SYS_openat, [u64::MAX, 0, 0], &[FILES]),
    (libc::SYS_openat2, [u64::MAX, 0, 0], &[FILES]),
    (libc::SYS_open_by_handle_at, [u64::MAX, 0, 0], &[FILES]),
    (libc::SYS_unlinkat, [u64::MAX, 0, 0], &[FILES]),
    (libc::SYS_symlinkat, [0, u64::MAX, 0], &[FILES]),
    (libc::SYS_memfd_create, [0; 3], NOBODY),
    (libc::SYS_socket, [1, 1, 0], NOBODY),
    (libc::SYS_socketpair, [libc::AF_UNIX as u64, 1, 0], &[SOCKETS]),
    (libc::SYS_socketpair, [libc::AF_INET as u64, 1, 0], NOBODY),
    (libc::SYS_connect, [u64::MAX, 0, 0], NOBODY),
    (libc::SYS_bind, [u64::MAX, 0, 0], NOBODY),
    (libc::SYS_accept4, [u64::MAX, 0, 0], NOBODY),
    (libc::SYS_sendto, [u64::MAX, 0, 0], &[SOCKETS]),
    (libc::SYS_sendmsg, [u64::MAX, 0, 0], &[SOCKETS]),
    (libc::SYS_recvmsg, [u64::MAX, 0, 0], NOBODY),
    (libc::SYS_execve, [0; 3], NOBODY),
    (libc::SYS_execveat, [u64::MAX, 0, 0], NOBODY),
    (libc::SYS_clone, [u64::MAX, 0, 0], NOBODY),
    (libc::SYS_clone, [libc::CLONE_THREAD as u64, 0, 0], NOBODY),
    (libc::SYS_clone3, [0; 3], NOBODY),
    (libc::SYS_fork, [0; 3], NOBODY),
    (libc::SYS_vfork, [0; 3], NOBODY),
    (libc::SYS_kill, [0, 0, 0], NOBODY),
    (libc::SYS_tkill, [1, 0, 0], NOBODY),
    (libc::SYS_tgkill, [1, 1, 0], NOBODY),
    (libc::SYS_ptrace, [u64::MAX, 0, 0], NOBODY),
    (libc::SYS_process_vm_writev, [1, 0, 0], NOBODY),
    (libc::SYS_pidfd_open, [u64::MAX, 0, 0], NOBODY),
    (libc::SYS_pidfd_getfd, [u64::MAX, 0, 0], NOBODY),
    // Namespaces, mounts, the kernel's own machines.
    (libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0], NOBODY),
    (libc::SYS_unshare, [(libc::CLONE_FS | libc::CLONE_NEWNS) as u64, 0, 0], NOBODY),
    (libc::SYS_setns, [u64::MAX, 0, 0], NOBODY),
    (libc::SYS_mount, [0; 3], NOBODY),
    (libc::SYS_pivot_root, [0; 3], NOBODY),
    (libc::SYS_bpf, [u64::MAX, 0, 0], NOBODY),
    (libc::SYS_userfaultfd, [u64::MAX, 0, 0], NOBODY),
    (libc::SYS_perf_event_open, [0; 3], NOBODY),
    (libc::SYS_io_uring_setup, [0; 3], NOBODY),
    (libc::SYS_io_uring_register, [u64::MAX, 0, 0], NOBODY),
    (libc::SYS_io_uring_enter, [u64::MAX, 0, 0], &[DISK]),
    // What only some options of are harmless.
    (libc::SYS_prctl, [libc::PR_SET_NAME as u64, 0, 0], NOBODY),
    (libc::SYS_prctl, [libc::PR_GET_SECUREBITS as u64, 0, 0], &[FILES]),
    (libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0], NOBODY),
    (libc::SYS_prctl, [libc::PR_SET_SECCOMP as u64, 0, 0], NOBODY),
    (libc::SYS_seccomp, [u64::MAX, 0, 0], NOBODY),
    (libc::SYS_prlimit64, [0, u64::MAX, 0], NOBODY),
    (libc::SYS_setrlimit, [u64::MAX, 0, 0], NOBODY),
    (libc::SYS_mmap, [0, 0, libc::PROT_EXEC as u64], NOBODY),
    (libc::SYS_mprotect, [0, 0, libc::PROT_EXEC as u64], NOBODY),
    (libc::SYS_pkey_mprotect, [0; 3], NOBODY),
    // Disks are none of the others' business.
    (libc::SYS_pread64, [u64::MAX, 0, 0], &[Kind::Vcpu, DISK, FILES]),
    (libc::SYS_pwritev, [u64::MAX, 0, 0], &[DISK, FILES]),
    (libc::SYS_fdatasync, [u64::MAX, 0, 0], &[DISK, FILES]),
    (libc::SYS_fallocate, [u64::MAX, 0, 0], &[SHARED, DISK, FILES]),
    (libc::SYS_epoll_ctl, [u64::MAX, 0, 0], &[SHARED, DISK, NETWORK, SOCKETS, FILES]),
    // KVM_RUN, KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_CREATE_DEVICE, KVM_SET_SREGS, KVM_SET_USER_MEMORY_REGION.
    ioctl(0xae80, &[Kind::Vcpu]),
    ioctl(0xae01, NOBODY),
    ioctl(0xae41, NOBODY),
    ioctl(0xc00c_aee0, NOBODY),
    ioctl(0x4138_ae84, NOBODY),
    ioctl(0x4020_ae46, &[Kind::Vcpu, SHARED]),
    // VFIO_GROUP_GET_DEVICE_FD, VFIO_DEVICE_RESET, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA.
    ioctl(0x3b6a, NOBODY),
    ioctl(0x3b6f, &[Kind::Vcpu]),
    ioctl(0x3b71, &[SHARED]),
    ioctl(0x3b72, &[Kind::Vcpu, SHARED]),
    // A tap is set up by its own thread, and made by none; no terminal is written to.
    ioctl(libc::TUNSETIFF, NOBODY),
    ioctl(libc::TUNSETQUEUE, &[NETWORK]),
    ioctl(libc::TUNSETOFFLOAD, &[NETWORK]),
    ioctl(libc::TIOCSTI, NOBODY),
    ioctl(libc::FIONBIO, &[SOCKETS]),
    ioctl(libc::SIOCGIFCONF, NOBODY),
];

/// Asks for all of it on a thread of that kind whose filter answers instead of ending the process: which calls of
/// [`FORBIDDEN`] they let through.
fn let_through(kind: Kind) -> Vec<usize> {
    /// No call of the kernel fails like this.
    const REFUSED: u32 = 4000;
    let asked = std::thread::spawn(move || {
        seccompiler::apply_filter(&kind.filter(&SeccompAction::Errno(REFUSED)).unwrap()).unwrap();
        let is_refused = |(call, [a, b, c], _): &Forbidden| {
            // SAFETY: descriptors, addresses and options are such that whatever is let through fails in the kernel or
            // changes nothing.
            let done = unsafe { libc::syscall(*call, *a, *b, *c, 0, 0, 0) };
            let error = io::Error::last_os_error().raw_os_error().unwrap();
            let refused = kind.refused().contains(call) && error == libc::EACCES;
            done == -1 && (error == REFUSED.cast_signed() || refused)
        };
        (0..FORBIDDEN.len()).filter(|&at| !is_refused(&FORBIDDEN[at])).collect()
    });
    asked.join().unwrap()
}

#[test]
fn each_list_refuses_what_is_not_its_threads_business() {
    for kind in Kind::all() {
        let allowed = let_through(kind);
        for (at, (call, arguments, of)) in FORBIDDEN.iter().enumerate() {
            let wanted = of.contains(&kind);
            assert_eq!(allowed.contains(&at), wanted, "{kind:?}: call {call} with {arguments:x?}");
        }
    }
}
