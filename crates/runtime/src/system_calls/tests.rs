//! Filters as the kernel runs them: an interpreter of the seven instructions that they consist of.

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
            JUMP_ABOVE => next += if loaded > value { if_true } else { if_false },
            JUMP_AT_LEAST => next += if loaded >= value { if_true } else { if_false },
            RETURN if value == libc::SECCOMP_RET_ALLOW => return Verdict::Allow,
            RETURN if value == libc::SECCOMP_RET_KILL_PROCESS => return Verdict::Kill,
            RETURN if value == libc::SECCOMP_RET_LOG => return Verdict::Log,
            RETURN => {
                assert_eq!(value & 0xffff_0000, libc::SECCOMP_RET_ERRNO, "{value:#x}");
                return Verdict::Refuse(value as u16);
            }
            other => panic!("no instruction {other:#x}"),
        }
    }
}

const DENIED: Verdict = Verdict::Refuse(libc::EPERM as u16);
const UNKNOWN: Verdict = Verdict::Refuse(libc::ENOSYS as u16);

fn judged(capabilities: u64, number: i64, first: u64) -> Verdict {
    let filter = runtime_default(capabilities).instructions().expect("a filter");
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
    let filter = runtime_default(capability::DEFAULT).instructions().expect("a filter");
    assert_eq!(run(&filter, 0x4000_0003, libc::SYS_read, [0; 6]), Verdict::Kill);
}

#[test]
fn every_number_gets_the_verdict_of_its_own_rule() {
    let profile = runtime_default(capability::DEFAULT);
    let filter = profile.instructions().expect("a filter");
    assert!(filter.len() < 1024, "{} instructions", filter.len());
    for number in 0..600 {
        let expected = match profile.rules.get(&number) {
            Some(rule) if rule.cases.is_empty() => rule.otherwise,
            Some(_) => continue,
            None if i64::from(number) < FIRST_UNKNOWN => DENIED,
            None => UNKNOWN,
        };
        let number = i64::from(number);
        assert_eq!(run(&filter, ARCHITECTURE, number, [0; 6]), expected, "{number}");
    }
}

#[test]
fn conditions_compare_all_of_an_argument() {
    use Comparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    let large = 7 << 32 | 5;
    let values = [0, 4, 5, 6, 6 << 32, large - 1, large, large + 1, 8 << 32, u64::MAX];
    type Compare = fn(&u64, &u64) -> bool;
    let comparisons: [(Comparison, Compare); 6] = [
        (Equal, u64::eq),
        (NotEqual, u64::ne),
        (Less, u64::lt),
        (LessOrEqual, u64::le),
        (Greater, u64::gt),
        (GreaterOrEqual, u64::ge),
    ];
    for (comparison, holds) in comparisons {
        for (mask, value) in [u64::MAX, 0xff, 0xffff_0000_0000]
            .into_iter()
            .flat_map(|mask| values.map(|value| (mask, value)))
        {
            let mut profile = Profile::new(DENIED);
            let condition = Condition { argument: 2, mask, comparison, value };
            profile.add_case(1, vec![condition], Verdict::Allow);
            let filter = profile.instructions().expect("a filter");
            for argument in values {
                let verdict = run(&filter, ARCHITECTURE, 1, [9, 9, argument, 9, 9, 9]);
                let expected =
                    if holds(&(argument & mask), &value) { Verdict::Allow } else { DENIED };
                assert_eq!(
                    verdict, expected,
                    "{argument:#x} & {mask:#x} {comparison:?} {value:#x}"
                );
            }
        }
    }
}

#[test]
fn all_conditions_of_a_case_must_hold_and_the_first_case_that_holds_decides() {
    let is = |argument, value| Condition {
        argument,
        mask: u64::MAX,
        comparison: Comparison::Equal,
        value,
    };
    let mut profile = Profile::new(DENIED);
    profile.add_case(1, vec![is(0, 1 << 40), is(5, 2)], Verdict::Allow);
    profile.add_case(1, vec![is(5, 2)], Verdict::Log);
    let judge = |profile: &Profile, first, last| {
        let filter = profile.instructions().expect("a filter");
        run(&filter, ARCHITECTURE, 1, [first, 0, 0, 0, 0, last])
    };
    assert_eq!(judge(&profile, 1 << 40, 2), Verdict::Allow);
    assert_eq!(judge(&profile, 1, 2), Verdict::Log);
    assert_eq!(judge(&profile, 1 << 40, 3), DENIED);
    // What holds for all arguments stands alone, whichever came first.
    profile.add_case(1, Vec::new(), Verdict::Kill);
    profile.add_case(1, vec![is(5, 2)], Verdict::Allow);
    assert_eq!(judge(&profile, 1, 2), Verdict::Kill);
}

#[test]
fn a_profile_that_no_kernel_takes_is_refused() {
    let mut profile = Profile::new(DENIED);
    for number in 0..1000 {
        for value in 0..2 {
            let condition = Condition {
                argument: 0,
                mask: u64::MAX,
                comparison: Comparison::Less,
                value: number as u64 + value,
            };
            profile.add_case(number, vec![condition], Verdict::Allow);
        }
    }
    let error = profile.instructions().expect_err("too long");
    assert!(error.contains("4096"), "{error}");
}
