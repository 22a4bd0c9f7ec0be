//! The system calls themselves.

use libc::c_int;
use libc::c_long;

/// A call that is allowed.
pub(super) enum Call {
    /// Whatever its arguments.
    Any(c_long),
    /// If the lower half of this argument is one of these, which is all the kernel looks at.
    OneOf(c_long, u8, &'static [u64]),
    /// If this argument has none of these bits.
    Without(c_long, u8, u64),
    /// If its first argument is this process.
    OfThisProcess(c_long),
}

impl Call {
    pub(super) fn number(&self) -> c_long {
        match *self {
            Self::Any(call) | Self::OneOf(call, ..) | Self::Without(call, ..) | Self::OfThisProcess(call) => {
                call
            }
        }
    }
}

const fn number(value: c_int) -> u64 {
    value.cast_unsigned() as u64
}

/// What any thread needs to live and die: memory (no new code), locks, signals, time, and the log.
pub(super) const ANY: &[Call] = &[
    Call::Any(libc::SYS_brk),
    Call::Any(libc::SYS_clock_getres),
    Call::Any(libc::SYS_clock_gettime),
    Call::Any(libc::SYS_clock_nanosleep),
    Call::Any(libc::SYS_close),
    Call::Any(libc::SYS_eventfd2),
    Call::Any(libc::SYS_exit),
    Call::Any(libc::SYS_exit_group),
    Call::Any(libc::SYS_fcntl),
    Call::Any(libc::SYS_fstat),
    Call::Any(libc::SYS_futex),
    Call::Any(libc::SYS_getpid),
    Call::Any(libc::SYS_getrandom),
    Call::Any(libc::SYS_gettid),
    Call::Any(libc::SYS_gettimeofday),
    Call::Any(libc::SYS_lseek),
    Call::Any(libc::SYS_madvise),
    Call::Any(libc::SYS_membarrier),
    Call::Without(libc::SYS_mmap, 2, number(libc::PROT_EXEC)),
    Call::Without(libc::SYS_mprotect, 2, number(libc::PROT_EXEC)),
    Call::Any(libc::SYS_mremap),
    Call::Any(libc::SYS_munmap),
    Call::Any(libc::SYS_nanosleep),
    Call::Any(libc::SYS_read),
    Call::Any(libc::SYS_restart_syscall),
    Call::Any(libc::SYS_rt_sigaction),
    Call::Any(libc::SYS_rt_sigprocmask),
    Call::Any(libc::SYS_rt_sigreturn),
    Call::Any(libc::SYS_sched_getaffinity),
    Call::Any(libc::SYS_sched_yield),
    Call::Any(libc::SYS_sigaltstack),
    Call::OfThisProcess(libc::SYS_tgkill),
    Call::Any(libc::SYS_write),
    Call::Any(libc::SYS_writev),
];

/// What a thread other than a file server's tries and does without. The C library looks at
/// `/proc/sys/vm/overcommit_memory` before it gives back the memory of a thread's arena, and takes an error for
/// the usual setting; the rest is what a panic tries that is asked for its trace.
pub(super) const REFUSED: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_getcwd,
    libc::SYS_readlink,
    libc::SYS_newfstatat,
    libc::SYS_statx,
];

/// Running the guest, and what its register writes come to: interrupts, doorbells and BARs that move, and a passed
/// function's registers.
pub(super) const VCPU: &[Call] = &[
    Call::OneOf(libc::SYS_ioctl, 1, ioctl::VCPU),
    Call::Any(libc::SYS_pread64),
    Call::Any(libc::SYS_pwrite64),
];

/// Pages given back, blocks of memory plugged and unplugged, for the guest and for the IOMMU.
pub(super) const SHARED: &[Call] = &[
    Call::Any(libc::SYS_epoll_ctl),
    Call::Any(libc::SYS_epoll_pwait),
    Call::Any(libc::SYS_epoll_wait),
    Call::Any(libc::SYS_fallocate),
    Call::OneOf(libc::SYS_ioctl, 1, ioctl::SHARED),
];

/// Reads and writes of an open file, by a ring that was made before or without.
pub(super) const DISK: &[Call] = &[
    Call::Any(libc::SYS_epoll_ctl),
    Call::Any(libc::SYS_epoll_pwait),
    Call::Any(libc::SYS_epoll_wait),
    Call::Any(libc::SYS_fallocate),
    Call::Any(libc::SYS_fdatasync),
    Call::Any(libc::SYS_fsync),
    Call::Any(libc::SYS_io_uring_enter),
    Call::Any(libc::SYS_pread64),
    Call::Any(libc::SYS_preadv),
    Call::Any(libc::SYS_preadv2),
    Call::Any(libc::SYS_pwrite64),
    Call::Any(libc::SYS_pwritev),
    Call::Any(libc::SYS_pwritev2),
];

/// Frames of an open tap.
pub(super) const NETWORK: &[Call] = &[
    Call::Any(libc::SYS_epoll_ctl),
    Call::Any(libc::SYS_epoll_pwait),
    Call::Any(libc::SYS_epoll_wait),
    Call::OneOf(libc::SYS_ioctl, 1, ioctl::NETWORK),
    Call::Any(libc::SYS_readv),
];

/// Both ends of streams, of which one goes to somebody in this process. Nothing that leads out.
pub(super) const SOCKETS: &[Call] = &[
    Call::Any(libc::SYS_epoll_ctl),
    Call::Any(libc::SYS_epoll_pwait),
    Call::Any(libc::SYS_epoll_wait),
    Call::OneOf(libc::SYS_ioctl, 1, ioctl::SOCKETS),
    Call::Any(libc::SYS_readv),
    Call::Any(libc::SYS_recvfrom),
    Call::Any(libc::SYS_sendmsg),
    Call::Any(libc::SYS_sendto),
    Call::Any(libc::SYS_shutdown),
    Call::OneOf(libc::SYS_socketpair, 0, &[number(libc::AF_UNIX)]),
];

/// What FUSE requests come to, and acting for the guest's users. Descriptors it did not open, and paths that
/// lead out, are kept from it by the server.
pub(super) const FILES: &[Call] = &[
    Call::Any(libc::SYS_capget),
    Call::Any(libc::SYS_capset),
    Call::Any(libc::SYS_copy_file_range),
    Call::Any(libc::SYS_dup),
    Call::Any(libc::SYS_dup3),
    Call::Any(libc::SYS_epoll_ctl),
    Call::Any(libc::SYS_epoll_pwait),
    Call::Any(libc::SYS_epoll_wait),
    Call::Any(libc::SYS_faccessat),
    Call::Any(libc::SYS_faccessat2),
    Call::Any(libc::SYS_fallocate),
    Call::Any(libc::SYS_fchdir),
    Call::Any(libc::SYS_fchmod),
    Call::Any(libc::SYS_fchmodat),
    Call::Any(libc::SYS_fchown),
    Call::Any(libc::SYS_fchownat),
    Call::Any(libc::SYS_fdatasync),
    Call::Any(libc::SYS_fgetxattr),
    Call::Any(libc::SYS_flistxattr),
    Call::Any(libc::SYS_flock),
    Call::Any(libc::SYS_fremovexattr),
    Call::Any(libc::SYS_fsetxattr),
    Call::Any(libc::SYS_fstatfs),
    Call::Any(libc::SYS_fsync),
    Call::Any(libc::SYS_ftruncate),
    Call::Any(libc::SYS_getcwd),
    Call::Any(libc::SYS_getdents64),
    Call::Any(libc::SYS_getegid),
    Call::Any(libc::SYS_geteuid),
    Call::Any(libc::SYS_getgid),
    Call::Any(libc::SYS_getgroups),
    Call::Any(libc::SYS_getuid),
    Call::Any(libc::SYS_getxattr),
    Call::Any(libc::SYS_lgetxattr),
    Call::Any(libc::SYS_linkat),
    Call::Any(libc::SYS_listxattr),
    Call::Any(libc::SYS_llistxattr),
    Call::Any(libc::SYS_lremovexattr),
    Call::Any(libc::SYS_lsetxattr),
    Call::Any(libc::SYS_mkdirat),
    Call::Any(libc::SYS_mknodat),
    Call::Any(libc::SYS_name_to_handle_at),
    Call::Any(libc::SYS_newfstatat),
    Call::Any(libc::SYS_open_by_handle_at),
    Call::Any(libc::SYS_openat),
    Call::Any(libc::SYS_openat2),
    // The securebits that keep capabilities.
    Call::OneOf(libc::SYS_prctl, 0, &[number(libc::PR_GET_SECUREBITS), number(libc::PR_SET_SECUREBITS)]),
    Call::Any(libc::SYS_pread64),
    Call::Any(libc::SYS_preadv),
    Call::Any(libc::SYS_preadv2),
    Call::Any(libc::SYS_pwrite64),
    Call::Any(libc::SYS_pwritev),
    Call::Any(libc::SYS_pwritev2),
    Call::Any(libc::SYS_readlink),
    Call::Any(libc::SYS_readlinkat),
    Call::Any(libc::SYS_readv),
    Call::Any(libc::SYS_removexattr),
    Call::Any(libc::SYS_renameat),
    Call::Any(libc::SYS_renameat2),
    Call::Any(libc::SYS_setfsgid),
    Call::Any(libc::SYS_setfsuid),
    Call::Any(libc::SYS_setgroups),
    Call::Any(libc::SYS_setresgid),
    Call::Any(libc::SYS_setresuid),
    Call::Any(libc::SYS_setxattr),
    Call::Any(libc::SYS_statfs),
    Call::Any(libc::SYS_statx),
    Call::Any(libc::SYS_symlinkat),
    Call::Any(libc::SYS_sync_file_range),
    Call::Any(libc::SYS_syncfs),
    Call::Any(libc::SYS_umask),
    Call::Any(libc::SYS_unlinkat),
    // A umask of its own.
    Call::OneOf(libc::SYS_unshare, 0, &[number(libc::CLONE_FS)]),
    Call::Any(libc::SYS_utimensat),
];

/// Requests of ioctl, by number.
mod ioctl {
    /// `_IOC` (`include/uapi/asm-generic/ioctl.h`): direction, bytes of the argument, kind, number.
    const fn request(direction: u64, size: usize, kind: u8, number: u8) -> u64 {
        direction << 30 | (size as u64) << 16 | (kind as u64) << 8 | number as u64
    }

    const NONE: u64 = 0;
    const WRITE: u64 = 1;
    const READ: u64 = 2;
    /// KVMIO.
    const KVM: u8 = 0xae;

    const KVM_SET_USER_MEMORY_REGION: u64 =
        request(WRITE, size_of::<kvm_bindings::kvm_userspace_memory_region>(), KVM, 0x46);
    const KVM_SET_GSI_ROUTING: u64 = request(WRITE, size_of::<kvm_bindings::kvm_irq_routing>(), KVM, 0x6a);
    const KVM_IRQFD: u64 = request(WRITE, size_of::<kvm_bindings::kvm_irqfd>(), KVM, 0x76);
    const KVM_IOEVENTFD: u64 = request(WRITE, size_of::<kvm_bindings::kvm_ioeventfd>(), KVM, 0x79);
    const KVM_RUN: u64 = request(NONE, 0, KVM, 0x80);
    const KVM_GET_REGS: u64 = request(READ, size_of::<kvm_bindings::kvm_regs>(), KVM, 0x81);
    const KVM_SET_REGS: u64 = request(WRITE, size_of::<kvm_bindings::kvm_regs>(), KVM, 0x82);
    const KVM_GET_SREGS: u64 = request(READ, size_of::<kvm_bindings::kvm_sregs>(), KVM, 0x83);
    const KVM_GET_MSRS: u64 = request(READ | WRITE, size_of::<kvm_bindings::kvm_msrs>(), KVM, 0x88);
    const KVM_GET_LAPIC: u64 = request(READ, size_of::<kvm_bindings::kvm_lapic_state>(), KVM, 0x8e);
    const KVM_GET_MP_STATE: u64 = request(READ, size_of::<kvm_bindings::kvm_mp_state>(), KVM, 0x98);
    const KVM_GET_VCPU_EVENTS: u64 = request(READ, size_of::<kvm_bindings::kvm_vcpu_events>(), KVM, 0x9f);
    const KVM_GET_DEBUGREGS: u64 = request(READ, size_of::<kvm_bindings::kvm_debugregs>(), KVM, 0xa1);
    const KVM_GET_TSC_KHZ: u64 = request(NONE, 0, KVM, 0xa3);
    const KVM_GET_XSAVE: u64 = request(READ, size_of::<kvm_bindings::kvm_xsave>(), KVM, 0xa4);
    const KVM_GET_XCRS: u64 = request(READ, size_of::<kvm_bindings::kvm_xcrs>(), KVM, 0xa6);
    const KVM_KVMCLOCK_CTRL: u64 = request(NONE, 0, KVM, 0xad);
    const KVM_GET_DEVICE_ATTR: u64 = request(WRITE, size_of::<kvm_bindings::kvm_device_attr>(), KVM, 0xe2);
    const KVM_SET_DEVICE_ATTR: u64 = request(WRITE, size_of::<kvm_bindings::kvm_device_attr>(), KVM, 0xe1);

    /// Those of VFIO and iommufd have no direction and no size.
    const fn vfio(number: u8) -> u64 {
        request(NONE, 0, b';', number)
    }

    const VFIO_DEVICE_SET_IRQS: u64 = vfio(110);
    const VFIO_DEVICE_RESET: u64 = vfio(111);
    const VFIO_IOMMU_MAP_DMA: u64 = vfio(113);
    const VFIO_IOMMU_UNMAP_DMA: u64 = vfio(114);
    const VFIO_DEVICE_DETACH_IOMMUFD_PT: u64 = vfio(120);
    const IOMMU_IOAS_IOVA_RANGES: u64 = vfio(0x84);
    const IOMMU_IOAS_MAP: u64 = vfio(0x85);
    const IOMMU_IOAS_UNMAP: u64 = vfio(0x86);

    pub(super) const VCPU: &[u64] = &[
        KVM_RUN,
        KVM_GET_REGS,
        KVM_SET_REGS,
        KVM_KVMCLOCK_CTRL,
        // What it is saved by.
        KVM_GET_SREGS,
        KVM_GET_MSRS,
        KVM_GET_LAPIC,
        KVM_GET_MP_STATE,
        KVM_GET_VCPU_EVENTS,
        KVM_GET_DEBUGREGS,
        KVM_GET_TSC_KHZ,
        KVM_GET_XSAVE,
        KVM_GET_XCRS,
        KVM_GET_DEVICE_ATTR,
        // What moves with a BAR or a message.
        KVM_IOEVENTFD,
        KVM_IRQFD,
        KVM_SET_GSI_ROUTING,
        KVM_SET_USER_MEMORY_REGION,
        VFIO_DEVICE_SET_IRQS,
        VFIO_DEVICE_RESET,
        // The last of a passed function, which may leave the bus in the middle of an access.
        KVM_SET_DEVICE_ATTR,
        VFIO_DEVICE_DETACH_IOMMUFD_PT,
        VFIO_IOMMU_UNMAP_DMA,
        IOMMU_IOAS_UNMAP,
    ];

    pub(super) const SHARED: &[u64] = &[
        KVM_SET_USER_MEMORY_REGION,
        VFIO_IOMMU_MAP_DMA,
        VFIO_IOMMU_UNMAP_DMA,
        // Whether the function reaches what is to be mapped.
        IOMMU_IOAS_IOVA_RANGES,
        IOMMU_IOAS_MAP,
        IOMMU_IOAS_UNMAP,
    ];

    pub(super) const NETWORK: &[u64] = &[libc::TUNSETVNETHDRSZ, libc::TUNSETOFFLOAD, libc::TUNSETQUEUE];

    pub(super) const SOCKETS: &[u64] = &[libc::FIONBIO];

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn numbers_are_the_kernels() {
            let kvm = [KVM_SET_USER_MEMORY_REGION, KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD, KVM_RUN];
            assert_eq!(kvm, [0x4020_ae46, 0x4008_ae6a, 0x4020_ae76, 0x4040_ae79, 0xae80]);
            let kvm = [KVM_GET_REGS, KVM_SET_REGS, KVM_KVMCLOCK_CTRL, KVM_SET_DEVICE_ATTR];
            assert_eq!(kvm, [0x8090_ae81, 0x4090_ae82, 0xaead, 0x4018_aee1]);
            let saved = [
                KVM_GET_SREGS,
                KVM_GET_MSRS,
                KVM_GET_LAPIC,
                KVM_GET_MP_STATE,
                KVM_GET_VCPU_EVENTS,
                KVM_GET_DEBUGREGS,
                KVM_GET_TSC_KHZ,
                KVM_GET_XSAVE,
                KVM_GET_XCRS,
                KVM_GET_DEVICE_ATTR,
            ];
            let kernels = [
                0x8138_ae83,
                0xc008_ae88,
                0x8400_ae8e,
                0x8004_ae98,
                0x8040_ae9f,
                0x8080_aea1,
                0xaea3,
                0x9000_aea4,
                0x8188_aea6,
                0x4018_aee2,
            ];
            assert_eq!(saved, kernels);
            let vfio = [VFIO_DEVICE_SET_IRQS, IOMMU_IOAS_IOVA_RANGES, IOMMU_IOAS_UNMAP];
            assert_eq!(vfio, [0x3b6e, 0x3b84, 0x3b86]);
        }
    }
}
