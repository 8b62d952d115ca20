//! Filters as the kernel runs them: an interpreter of the six instructions that they consist of.

use super::*;
use crate::capability;

/// What a filter says of a call.
fn run(filter: &[u64], architecture: u32, number: i64, arguments: [u64; 6]) -> Verdict {
    let word = |at: u32| match at {
        NUMBER_AT => number as u32,
        ARCHITECTURE_AT => architecture,
        at => {
            let (index, half) = ((at - ARGUMENTS_AT) / 8, (at - ARGUMENTS_AT) % 8);
            let argument = arguments[index as usize];
            if half == LOW_HALF_AT { argument as u32 } else { (argument >> 32) as u32 }
        }
    };
    let (mut next, mut loaded) = (0_usize, 0_u32);
    loop {
        let bits = filter[next];
        let (code, value) = ((bits >> 48) as u16, bits as u32);
        let (if_true, if_false) = ((bits >> 40) as u8 as usize, (bits >> 32) as u8 as usize);
        next += 1;
        match code {
            LOAD => loaded = word(value),
            AND => loaded &= value,
            JUMP => next += value as usize,
            JUMP_EQUAL => next += if loaded == value { if_true } else { if_false },
            JUMP_AT_LEAST => next += if loaded >= value { if_true } else { if_false },
            RETURN if value == libc::SECCOMP_RET_ALLOW => return Verdict::Allow,
            RETURN if value == libc::SECCOMP_RET_KILL_PROCESS => return Verdict::Kill,
            RETURN => return Verdict::Refuse((value & 0xffff) as i32),
            other => panic!("no instruction {other:#x}"),
        }
    }
}

const DENIED: Verdict = Verdict::Refuse(libc::EPERM);
const UNKNOWN: Verdict = Verdict::Refuse(libc::ENOSYS);

fn judged(capabilities: u64, number: i64, first: u64) -> Verdict {
    let filter = runtime_default(capabilities).instructions();
    run(&filter, ARCHITECTURE, number, [first, 0, 0, 0, 0, 0])
}

#[test]
fn the_default_refuses_what_acts_on_the_machine() {
    let cases = [
        (libc::SYS_read, Verdict::Allow),
        (libc::SYS_openat, Verdict::Allow),
        (libc::SYS_ptrace, Verdict::Allow),
        (libc::SYS_chroot, Verdict::Allow),
        (libc::SYS_mount, DENIED),
        (libc::SYS_unshare, DENIED),
        (libc::SYS_setns, DENIED),
        (libc::SYS_bpf, DENIED),
        (libc::SYS_keyctl, DENIED),
        (libc::SYS_add_key, DENIED),
        (libc::SYS_io_uring_setup, DENIED),
        (libc::SYS_userfaultfd, DENIED),
        (libc::SYS_kexec_load, DENIED),
        (libc::SYS_reboot, DENIED),
        (libc::SYS_clone3, UNKNOWN),
        (FIRST_UNKNOWN, UNKNOWN),
        (0x4000_0000 | libc::SYS_read, UNKNOWN),
    ];
    for (number, expected) in cases {
        assert_eq!(judged(capability::DEFAULT, number, 0), expected, "{number}");
    }
}

/// One behind the newest call that the profile knows.
const FIRST_UNKNOWN: i64 = 457;

#[test]
fn arguments_decide_where_a_call_has_harmless_forms() {
    let namespace = libc::CLONE_NEWUSER as u64;
    let cases = [
        (libc::SYS_clone, libc::SIGCHLD as u64, Verdict::Allow),
        (libc::SYS_clone, namespace | libc::SIGCHLD as u64, DENIED),
        (libc::SYS_socket, libc::AF_INET as u64, Verdict::Allow),
        (libc::SYS_socket, libc::AF_VSOCK as u64, DENIED),
        // The kernel reads an int: what stands above it deceives nobody.
        (libc::SYS_socket, 1 << 32 | libc::AF_VSOCK as u64, DENIED),
        (libc::SYS_personality, 0, Verdict::Allow),
        (libc::SYS_personality, 0xffff_ffff, Verdict::Allow),
        (libc::SYS_personality, 0x4_0000, DENIED),
    ];
    for (number, first, expected) in cases {
        assert_eq!(judged(capability::DEFAULT, number, first), expected, "{number} {first:#x}");
    }
}

#[test]
fn a_capability_brings_the_calls_that_use_it() {
    let bit = |name| 1_u64 << capability::named(name).0;
    let administrator = bit("SYS_ADMIN");
    for number in [libc::SYS_mount, libc::SYS_unshare, libc::SYS_clone3, libc::SYS_bpf] {
        assert_eq!(judged(administrator, number, 0), Verdict::Allow, "{number}");
    }
    assert_eq!(judged(administrator, libc::SYS_clone, NEW_USER), Verdict::Allow);
    assert_eq!(judged(administrator, libc::SYS_keyctl, 0), DENIED);
    assert_eq!(judged(bit("SYS_TIME"), libc::SYS_clock_settime, 0), Verdict::Allow);
    assert_eq!(judged(0, libc::SYS_clock_settime, 0), DENIED);
    assert_eq!(judged(0, libc::SYS_chroot, 0), DENIED);
}

const NEW_USER: u64 = libc::CLONE_NEWUSER as u64;

#[test]
fn calls_of_another_architecture_end_the_process() {
    let filter = runtime_default(capability::DEFAULT).instructions();
    assert_eq!(run(&filter, 0x4000_0003, libc::SYS_read, [0; 6]), Verdict::Kill);
}

#[test]
fn every_number_gets_the_verdict_of_its_own_rule() {
    let profile = runtime_default(capability::DEFAULT);
    let filter = profile.instructions();
    assert!(filter.len() < 1024, "{} instructions", filter.len());
    for number in 0..600 {
        let expected = match profile.rules.get(&number) {
            Some(rule) if rule.conditions.is_empty() => rule.otherwise,
            Some(_) => continue,
            None if i64::from(number) < FIRST_UNKNOWN => DENIED,
            None => UNKNOWN,
        };
        let number = i64::from(number);
        assert_eq!(run(&filter, ARCHITECTURE, number, [0; 6]), expected, "{number}");
    }
}
