#![expect(unsafe_code, reason = "asks for memory it must not get")]
//! What is on the lists is enough for devices under attack; what is not ends the process.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::process::ExitStatus;

use kiai_devices::testing::Stage;
use kiai_devices::testing::Subject;
use kiai_devices::testing::random_bytes;
use kiai_fs::testing::FS;

use super::*;

/// Names the kind of thread a child of these tests is to be.
const CHILD: &str = "KIAI_TEST_CONFINED";

/// Runs this test again in a process of its own, which does `act` on a thread of the kind given; what it wrote to
/// its standard error, and how it ended.
fn in_a_child(test: &str, kind: &str, act: fn()) -> Option<(ExitStatus, String)> {
    match std::env::var(CHILD) {
        Ok(kind) => {
            let kind = match kind.as_str() {
                "vcpu" => Kind::Vcpu,
                "files" => Kind::Files,
                _ => Kind::Device,
            };
            prepare().unwrap();
            let confined = std::thread::spawn(move || {
                confine(kind).unwrap();
                act();
            });
            confined.join().unwrap();
            None
        }
        Err(_) => {
            let mut command = Command::new(std::env::current_exe().unwrap());
            let name = format!("seccomp::tests::{test}");
            let ended = command.args(["--exact", &name, "--nocapture"]).env(CHILD, kind).output().unwrap();
            Some((ended.status, String::from_utf8_lossy(&ended.stderr).into_owned()))
        }
    }
}

#[test]
fn a_call_that_is_not_listed_ends_the_process_and_is_named() {
    let act = || {
        let _ = std::net::UdpSocket::bind("127.0.0.1:0");
    };
    for kind in ["vcpu", "device", "files"] {
        let test = "a_call_that_is_not_listed_ends_the_process_and_is_named";
        let Some((ended, said)) = in_a_child(test, kind, act) else { return };
        let number = format!("system call {:04}", libc::SYS_socket);
        assert!(ended.signal() == Some(libc::SIGABRT) && said.contains(&number), "{kind}: {said}");
    }
}

#[test]
fn a_vcpus_thread_starts_threads_but_no_programs() {
    let act = || {
        std::thread::spawn(|| println!("started")).join().unwrap();
        let _ = Command::new("true").status();
        println!("a program was started");
    };
    let test = "a_vcpus_thread_starts_threads_but_no_programs";
    let Some((ended, said)) = in_a_child(test, "vcpu", act) else { return };
    // The C library blocks signals while it starts a program: the kernel then ends the process by itself.
    assert!(ended.signal() == Some(libc::SIGSYS), "{ended}: {said}");
}

#[test]
fn a_devices_thread_opens_no_files() {
    let act = || {
        let error = std::fs::File::open("/etc/passwd").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    };
    let test = "a_devices_thread_opens_no_files";
    let Some((ended, said)) = in_a_child(test, "device", act) else { return };
    assert!(ended.success(), "{said}");
}

#[test]
fn a_devices_thread_gives_memory_back() {
    let act = || {
        // Of the thread's own arena, and enough that the C library shrinks it afterwards.
        let blocks: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 64 << 10]).collect();
        drop(std::hint::black_box(blocks));
    };
    let test = "a_devices_thread_gives_memory_back";
    let Some((ended, said)) = in_a_child(test, "device", act) else { return };
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
    let Some((ended, said)) = in_a_child(test, "device", act) else { return };
    assert!(
        ended.signal() == Some(libc::SIGABRT) && said.contains(&format!("system call {:04}", libc::SYS_mmap)),
        "{said}"
    );
}

/// Sessions of a hostile driver: its thread is the vCPU's, and the devices' threads are their own kinds.
fn under_attack(subject: &Subject) {
    const SESSIONS: u64 = 100;
    for seed in 0..SESSIONS {
        let stage = Stage::set(subject);
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
    let test = "devices_under_attack_need_nothing_else";
    let Some((ended, said)) = in_a_child(test, "vcpu", || {}) else { return };
    assert!(ended.success(), "{said}");
}
