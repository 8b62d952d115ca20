//! `RuntimeDefault`: what containerd's default profile allows, on the same conditions. As with
//! other runtimes, rights that a container was given bring the calls that use them.

use crate::capability::{self, Capability, named};

use super::names::number;
use super::{Comparison, Condition, Profile, Verdict};

/// Flags of `clone` that make namespaces.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;
/// The execution domains that programs may choose: Linux, with or without an old release's number
/// or fixed addresses; and the question which it is.
const PERSONALITIES: [u32; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Calls that libc has no names for yet.
const UNNAMED: [&str; 7] = [
    "io_pgetevents",
    "cachestat",
    "fchmodat2",
    "map_shadow_stack",
    "futex_wake",
    "futex_wait",
    "futex_requeue",
];

/// Writes the numbers of calls that are named without their prefix.
macro_rules! numbers {
    ($($name:ident)*) => { [$(libc::$name),*] };
}

/// Allowed to every container, on all architectures.
#[rustfmt::skip]
const ALLOWED: &[i64] = &numbers![
    SYS_accept SYS_accept4 SYS_adjtimex SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir
    SYS_clock_adjtime SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_close
    SYS_close_range SYS_connect SYS_copy_file_range SYS_dup SYS_dup3 SYS_epoll_create1
    SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2 SYS_execve SYS_execveat SYS_exit
    SYS_exit_group SYS_faccessat SYS_faccessat2 SYS_fadvise64 SYS_fallocate SYS_fanotify_mark
    SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_fcntl SYS_fdatasync
    SYS_fgetxattr SYS_flistxattr SYS_flock SYS_fremovexattr SYS_fsetxattr SYS_fstat SYS_fstatfs
    SYS_fsync SYS_ftruncate SYS_futex SYS_futex_waitv SYS_get_robust_list SYS_getcpu SYS_getcwd
    SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer
    SYS_getpeername SYS_getpgid SYS_getpid SYS_getppid SYS_getpriority SYS_getrandom
    SYS_getresgid SYS_getresuid SYS_getrlimit SYS_getrusage SYS_getsid SYS_getsockname
    SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid SYS_getxattr SYS_inotify_add_watch
    SYS_inotify_init1 SYS_inotify_rm_watch SYS_io_cancel SYS_io_destroy SYS_io_getevents
    SYS_io_setup SYS_io_submit SYS_ioctl SYS_ioprio_get SYS_ioprio_set SYS_kill
    SYS_landlock_add_rule SYS_landlock_create_ruleset SYS_landlock_restrict_self SYS_lgetxattr
    SYS_linkat SYS_listen SYS_listxattr SYS_llistxattr SYS_lremovexattr SYS_lseek SYS_lsetxattr
    SYS_madvise SYS_membarrier SYS_memfd_create SYS_memfd_secret SYS_mincore SYS_mkdirat
    SYS_mknodat SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap SYS_mprotect SYS_mq_getsetattr
    SYS_mq_notify SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend SYS_mq_unlink SYS_mremap
    SYS_msgctl SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync SYS_munlock SYS_munlockall SYS_munmap
    SYS_name_to_handle_at SYS_nanosleep SYS_newfstatat SYS_openat SYS_openat2 SYS_pidfd_open
    SYS_pidfd_send_signal SYS_pipe2 SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_ppoll
    SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2 SYS_prlimit64 SYS_process_mrelease
    SYS_process_vm_readv SYS_process_vm_writev SYS_pselect6 SYS_ptrace SYS_pwrite64 SYS_pwritev
    SYS_pwritev2 SYS_read SYS_readahead SYS_readlinkat SYS_readv SYS_recvfrom SYS_recvmmsg
    SYS_recvmsg SYS_remap_file_pages SYS_removexattr SYS_renameat SYS_renameat2
    SYS_restart_syscall SYS_rseq SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask
    SYS_rt_sigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait
    SYS_rt_tgsigqueueinfo SYS_sched_get_priority_max SYS_sched_get_priority_min
    SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam SYS_sched_getscheduler
    SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr SYS_sched_setparam
    SYS_sched_setscheduler SYS_sched_yield SYS_seccomp SYS_semctl SYS_semget SYS_semop
    SYS_semtimedop SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_set_robust_list
    SYS_set_tid_address SYS_setfsgid SYS_setfsuid SYS_setgid SYS_setgroups SYS_setitimer
    SYS_setpgid SYS_setpriority SYS_setregid SYS_setresgid SYS_setresuid SYS_setreuid
    SYS_setrlimit SYS_setsid SYS_setsockopt SYS_setuid SYS_setxattr SYS_shmat SYS_shmctl SYS_shmdt
    SYS_shmget SYS_shutdown SYS_sigaltstack SYS_signalfd4 SYS_socketpair SYS_splice SYS_statfs
    SYS_statx SYS_symlinkat SYS_sync SYS_sync_file_range SYS_syncfs SYS_sysinfo SYS_tee SYS_tgkill
    SYS_timer_create SYS_timer_delete SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime
    SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime SYS_times SYS_tkill SYS_truncate
    SYS_umask SYS_uname SYS_unlinkat SYS_utimensat SYS_vmsplice SYS_wait4 SYS_waitid SYS_write
    SYS_writev
];

/// Older forms of these, which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLDER: &[i64] = &numbers![
    SYS_access SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create
    SYS_epoll_ctl_old SYS_epoll_wait SYS_epoll_wait_old SYS_eventfd SYS_fork SYS_futimesat
    SYS_get_thread_area SYS_getdents SYS_getpgrp SYS_inotify_init SYS_lchown SYS_link SYS_lstat
    SYS_mkdir SYS_mknod SYS_modify_ldt SYS_open SYS_pause SYS_pipe SYS_poll SYS_readlink
    SYS_rename SYS_rmdir SYS_select SYS_set_thread_area SYS_signalfd SYS_stat SYS_symlink SYS_time
    SYS_unlink SYS_utime SYS_utimes SYS_vfork
];
#[cfg(target_arch = "aarch64")]
const OLDER: &[i64] = &[];

/// What some capabilities bring.
#[rustfmt::skip]
const BY_CAPABILITY: &[(Capability, &[i64])] = &[
    (named("DAC_READ_SEARCH"), &numbers![SYS_open_by_handle_at]),
    (named("SYS_ADMIN"), &numbers![
        SYS_bpf SYS_clone SYS_clone3 SYS_fanotify_init SYS_fsconfig SYS_fsmount SYS_fsopen
        SYS_fspick SYS_lookup_dcookie SYS_mount SYS_mount_setattr SYS_move_mount SYS_open_tree
        SYS_perf_event_open SYS_quotactl SYS_quotactl_fd SYS_setdomainname SYS_sethostname
        SYS_setns SYS_syslog SYS_umount2 SYS_unshare
    ]),
    (named("SYS_BOOT"), &numbers![SYS_reboot]),
    (named("SYS_CHROOT"), &numbers![SYS_chroot]),
    (named("SYS_MODULE"), &numbers![SYS_delete_module SYS_finit_module SYS_init_module]),
    (named("SYS_PACCT"), &numbers![SYS_acct]),
    (named("SYS_PTRACE"), &numbers![SYS_kcmp SYS_pidfd_getfd SYS_process_madvise]),
    (named("SYS_TIME"), &numbers![SYS_clock_settime SYS_settimeofday]),
    (named("SYS_TTY_CONFIG"), &numbers![SYS_vhangup]),
    (named("SYS_NICE"), &numbers![
        SYS_get_mempolicy SYS_mbind SYS_set_mempolicy SYS_set_mempolicy_home_node
    ]),
    (named("SYSLOG"), &numbers![SYS_syslog]),
    (named("BPF"), &numbers![SYS_bpf]),
    (named("PERFMON"), &numbers![SYS_perf_event_open]),
];

/// The profile of a container that has these capabilities.
pub fn runtime_default(capabilities: u64) -> Profile {
    let mut profile = Profile::new(Verdict::Refuse(libc::EPERM as u16));
    let unnamed: Vec<i64> = UNNAMED.iter().filter_map(|name| number(name)).collect();
    for number in ALLOWED.iter().chain(OLDER).chain(&unnamed) {
        profile.set(*number, Verdict::Allow);
    }
    let mask = u64::from(u32::MAX);
    let is = |value: u32| Condition {
        argument: 0,
        mask,
        comparison: Comparison::Equal,
        value: value.into(),
    };
    profile.allow_where(libc::SYS_personality, PERSONALITIES.into_iter().map(is).collect());
    let virtual_machines =
        Condition { comparison: Comparison::NotEqual, ..is(libc::AF_VSOCK as u32) };
    profile.allow_where(libc::SYS_socket, vec![virtual_machines]);
    let plain = Condition { mask: NAMESPACES.into(), ..is(0) };
    profile.allow_where(libc::SYS_clone, vec![plain]);
    // Its flags lie in memory, which no filter sees. Programs then take the older one.
    profile.set(libc::SYS_clone3, Verdict::Refuse(libc::ENOSYS as u16));
    for (capability, numbers) in BY_CAPABILITY {
        if capability::has(capabilities, *capability) {
            numbers.iter().for_each(|number| profile.set(*number, Verdict::Allow));
        }
    }
    #[cfg(target_arch = "x86_64")]
    if capability::has(capabilities, named("SYS_RAWIO")) {
        profile.set(libc::SYS_iopl, Verdict::Allow);
        profile.set(libc::SYS_ioperm, Verdict::Allow);
    }
    profile
}
