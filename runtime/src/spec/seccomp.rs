//! The system calls a container may make: docker's default policy as a table of our own, by purpose.
//!
//! A call that is in no row returns EPERM, except `clone3`, which returns ENOSYS so that libc falls back to
//! `clone`, whose flags a filter can check. Some rows depend on a capability (OCI runtime-spec
//! `config-linux.md#seccomp`). Pure.

use oci_spec::runtime::Arch;
use oci_spec::runtime::Capability;
use oci_spec::runtime::LinuxSeccomp;
use oci_spec::runtime::LinuxSeccompAction;
use oci_spec::runtime::LinuxSeccompArg;
use oci_spec::runtime::LinuxSeccompArgBuilder;
use oci_spec::runtime::LinuxSeccompBuilder;
use oci_spec::runtime::LinuxSeccompOperator;
use oci_spec::runtime::LinuxSyscall;
use oci_spec::runtime::LinuxSyscallBuilder;

/// Calls that every container may make with any arguments.
const ALWAYS: &[&str] = &[
    // Files by path.
    "access",
    "chdir",
    "chmod",
    "chown",
    "chown32",
    "creat",
    "faccessat",
    "faccessat2",
    "fchmodat",
    "fchmodat2",
    "fchownat",
    "fstatat64",
    "futimesat",
    "getcwd",
    "getxattr",
    "getxattrat",
    "lchown",
    "lchown32",
    "lgetxattr",
    "link",
    "linkat",
    "listxattr",
    "listxattrat",
    "llistxattr",
    "lremovexattr",
    "lsetxattr",
    "lstat",
    "lstat64",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "name_to_handle_at",
    "newfstatat",
    "oldlstat",
    "oldstat",
    "open",
    "openat",
    "openat2",
    "readlink",
    "readlinkat",
    "removexattr",
    "removexattrat",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "setxattr",
    "setxattrat",
    "stat",
    "stat64",
    "statfs",
    "statfs64",
    "statx",
    "symlink",
    "symlinkat",
    "truncate",
    "truncate64",
    "unlink",
    "unlinkat",
    "utime",
    "utimensat",
    "utimensat_time64",
    "utimes",
    "listmount",
    "statmount",
    // Open files.
    "_llseek",
    "close",
    "close_range",
    "copy_file_range",
    "dup",
    "dup2",
    "dup3",
    "fadvise64",
    "fadvise64_64",
    "fallocate",
    "fchdir",
    "fchmod",
    "fchown",
    "fchown32",
    "fcntl",
    "fcntl64",
    "fdatasync",
    "fgetxattr",
    "flistxattr",
    "flock",
    "fremovexattr",
    "fsetxattr",
    "fstat",
    "fstat64",
    "fstatfs",
    "fstatfs64",
    "fsync",
    "ftruncate",
    "ftruncate64",
    "getdents",
    "getdents64",
    "ioctl",
    "lseek",
    "oldfstat",
    "pipe",
    "pipe2",
    "pread64",
    "preadv",
    "preadv2",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readahead",
    "readv",
    "sendfile",
    "sendfile64",
    "splice",
    "sync",
    "sync_file_range",
    "sync_file_range2",
    "syncfs",
    "tee",
    "umask",
    "vmsplice",
    "write",
    "writev",
    "cachestat",
    // Waiting for events.
    "_newselect",
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_ctl_old",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "epoll_wait_old",
    "eventfd",
    "eventfd2",
    "inotify_add_watch",
    "inotify_init",
    "inotify_init1",
    "inotify_rm_watch",
    "poll",
    "ppoll",
    "ppoll_time64",
    "pselect6",
    "pselect6_time64",
    "select",
    "signalfd",
    "signalfd4",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_gettime64",
    "timerfd_settime",
    "timerfd_settime64",
    // Asynchronous input and output; io_uring stays out, as docker decided.
    "io_cancel",
    "io_destroy",
    "io_getevents",
    "io_pgetevents",
    "io_pgetevents_time64",
    "io_setup",
    "io_submit",
    "fanotify_mark",
    // Memory.
    "brk",
    "madvise",
    "map_shadow_stack",
    "membarrier",
    "memfd_create",
    "memfd_secret",
    "mincore",
    "mlock",
    "mlock2",
    "mlockall",
    "mmap",
    "mmap2",
    "mprotect",
    "mremap",
    "mseal",
    "msync",
    "munlock",
    "munlockall",
    "munmap",
    "pkey_alloc",
    "pkey_free",
    "pkey_mprotect",
    "process_mrelease",
    "remap_file_pages",
    // Processes and threads.
    "alarm",
    "arch_prctl",
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "fork",
    "futex",
    "futex_requeue",
    "futex_time64",
    "futex_wait",
    "futex_waitv",
    "futex_wake",
    "get_robust_list",
    "get_thread_area",
    "modify_ldt",
    "pause",
    "pidfd_open",
    "pidfd_send_signal",
    "prctl",
    "restart_syscall",
    "rseq",
    "seccomp",
    "set_robust_list",
    "set_thread_area",
    "set_tid_address",
    "uretprobe",
    "vfork",
    "wait4",
    "waitid",
    "waitpid",
    // Identity.
    "capget",
    "capset",
    "getegid",
    "getegid32",
    "geteuid",
    "geteuid32",
    "getgid",
    "getgid32",
    "getgroups",
    "getgroups32",
    "getpgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getresgid",
    "getresgid32",
    "getresuid",
    "getresuid32",
    "getsid",
    "gettid",
    "getuid",
    "getuid32",
    "setfsgid",
    "setfsgid32",
    "setfsuid",
    "setfsuid32",
    "setgid",
    "setgid32",
    "setgroups",
    "setgroups32",
    "setpgid",
    "setregid",
    "setregid32",
    "setresgid",
    "setresgid32",
    "setresuid",
    "setresuid32",
    "setreuid",
    "setreuid32",
    "setsid",
    "setuid",
    "setuid32",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    // Limits and scheduling.
    "getcpu",
    "getpriority",
    "getrlimit",
    "getrusage",
    "ioprio_get",
    "ioprio_set",
    "prlimit64",
    "sched_get_priority_max",
    "sched_get_priority_min",
    "sched_getaffinity",
    "sched_getattr",
    "sched_getparam",
    "sched_getscheduler",
    "sched_rr_get_interval",
    "sched_rr_get_interval_time64",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
    "sched_yield",
    "setpriority",
    "setrlimit",
    "ugetrlimit",
    // Signals.
    "kill",
    "rt_sigaction",
    "rt_sigpending",
    "rt_sigprocmask",
    "rt_sigqueueinfo",
    "rt_sigreturn",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "rt_sigtimedwait_time64",
    "rt_tgsigqueueinfo",
    "sigaltstack",
    "signal",
    "sigprocmask",
    "sigreturn",
    "tgkill",
    "tkill",
    // Time.
    "adjtimex",
    "clock_adjtime",
    "clock_adjtime64",
    "clock_getres",
    "clock_getres_time64",
    "clock_gettime",
    "clock_gettime64",
    "clock_nanosleep",
    "clock_nanosleep_time64",
    "getitimer",
    "gettimeofday",
    "nanosleep",
    "setitimer",
    "time",
    "timer_create",
    "timer_delete",
    "timer_getoverrun",
    "timer_gettime",
    "timer_gettime64",
    "timer_settime",
    "timer_settime64",
    "times",
    // Sockets; `socket` itself is below.
    "accept",
    "accept4",
    "bind",
    "connect",
    "getpeername",
    "getsockname",
    "getsockopt",
    "listen",
    "recv",
    "recvfrom",
    "recvmmsg",
    "recvmmsg_time64",
    "recvmsg",
    "send",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    "socketcall",
    "socketpair",
    // System V and POSIX communication.
    "ipc",
    "mq_getsetattr",
    "mq_notify",
    "mq_open",
    "mq_timedreceive",
    "mq_timedreceive_time64",
    "mq_timedsend",
    "mq_timedsend_time64",
    "mq_unlink",
    "msgctl",
    "msgget",
    "msgrcv",
    "msgsnd",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
    "semtimedop_time64",
    "shmat",
    "shmctl",
    "shmdt",
    "shmget",
    // The rest: random numbers, the system's name and load, tracing of own children.
    "getrandom",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "sysinfo",
    "uname",
];

/// Calls that open with a capability.
const WITH_CAPABILITY: &[(Capability, &[&str])] = &[
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (
        Capability::SysAdmin,
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "lsm_get_self_attr",
            "lsm_list_modules",
            "lsm_set_self_attr",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (Capability::SysModule, &["delete_module", "finit_module", "init_module"]),
    (Capability::SysPacct, &["acct"]),
    (Capability::SysPtrace, &["kcmp", "pidfd_getfd", "process_madvise"]),
    (Capability::SysRawio, &["ioperm", "iopl"]),
    (Capability::SysTime, &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (Capability::SysTtyConfig, &["vhangup"]),
    (Capability::SysNice, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (Capability::Syslog, &["syslog"]),
    (Capability::Bpf, &["bpf"]),
    (Capability::Perfmon, &["perf_event_open"]),
];

/// Flags with which `clone` makes a namespace: new mount, cgroup, UTS, IPC, user, PID and network ones.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// Personalities that weaken nothing: Linux, Linux32, both with UNAME26, and the query.
const PERSONALITIES: &[u64] = &[0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

const AF_VSOCK: u64 = 40;
const ENOSYS: u32 = 38;
const EPERM: u32 = 1;

fn argument(index: usize, op: LinuxSeccompOperator, value: u64, value_two: Option<u64>) -> LinuxSeccompArg {
    let mut argument = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    if let Some(value_two) = value_two {
        argument = argument.value_two(value_two);
    }
    argument.build().expect("every field of a seccomp argument is set")
}

fn allow(names: &[&str], args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let syscall = LinuxSyscallBuilder::default()
        .names(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        .action(LinuxSeccompAction::ScmpActAllow);
    let syscall = if args.is_empty() { syscall } else { syscall.args(args) };
    syscall.build().expect("a seccomp row has names and an action")
}

/// The profile for a container with these capabilities.
pub fn default_profile(capabilities: &[Capability]) -> LinuxSeccomp {
    let mut rows = vec![allow(ALWAYS, Vec::new())];
    for (capability, names) in WITH_CAPABILITY {
        if capabilities.contains(capability) {
            rows.push(allow(names, Vec::new()));
        }
    }
    if !capabilities.contains(&Capability::SysAdmin) {
        let no_namespaces = argument(0, LinuxSeccompOperator::ScmpCmpMaskedEq, CLONE_NAMESPACES, Some(0));
        rows.push(allow(&["clone"], vec![no_namespaces]));
        rows.push(
            LinuxSyscallBuilder::default()
                .names(vec!["clone3".to_owned()])
                .action(LinuxSeccompAction::ScmpActErrno)
                .errno_ret(ENOSYS)
                .build()
                .expect("a seccomp row has names and an action"),
        );
    }
    // A vsock socket would reach the host's side of the sandbox, past every network rule.
    rows.push(allow(&["socket"], vec![argument(0, LinuxSeccompOperator::ScmpCmpNe, AF_VSOCK, None)]));
    for personality in PERSONALITIES {
        let same = argument(0, LinuxSeccompOperator::ScmpCmpEq, *personality, None);
        rows.push(allow(&["personality"], vec![same]));
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32])
        .syscalls(rows)
        .build()
        .expect("a seccomp profile has a default action")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn allowed(capabilities: &[Capability]) -> HashSet<String> {
        default_profile(capabilities)
            .syscalls()
            .iter()
            .flatten()
            .filter(|row| row.action() == LinuxSeccompAction::ScmpActAllow && row.args().is_none())
            .flat_map(|row| row.names().clone())
            .collect()
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut seen = HashSet::new();
        for name in ALWAYS {
            assert!(seen.insert(name), "{name}");
        }
        for (_, names) in WITH_CAPABILITY {
            for name in *names {
                assert!(!seen.contains(name), "{name} needs no capability after all");
            }
        }
    }

    #[test]
    fn dangerous_calls_need_their_capability() {
        let plain = allowed(&[]);
        for name in
            ["mount", "bpf", "reboot", "init_module", "keyctl", "kexec_load", "io_uring_setup", "clone"]
        {
            assert!(!plain.contains(name), "{name}");
        }
        assert!(allowed(&[Capability::SysAdmin]).contains("mount"));
        assert!(allowed(&[Capability::SysBoot]).contains("reboot"));
    }

    #[test]
    fn vsock_is_never_open() {
        for capabilities in [&[][..], &[Capability::SysAdmin]] {
            assert!(!allowed(capabilities).contains("socket"));
        }
    }
}
