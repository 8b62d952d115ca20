//! Filters of system calls (seccomp): from a list of what is allowed to the kernel's instructions.
//! Pure.
//!
//! Source: kernel.org, "Seccomp BPF"; the instructions are those of the classic packet filter.

mod runtime_default;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use runtime_default::runtime_default;

/// Loads a word of what the filter sees.
const LOAD: u16 = 0x20;
/// Goes on elsewhere.
const JUMP: u16 = 0x05;
/// Goes on elsewhere where the loaded word is a constant.
const JUMP_EQUAL: u16 = 0x15;
/// Goes on elsewhere where the loaded word is at least a constant.
const JUMP_AT_LEAST: u16 = 0x35;
/// Keeps only some bits of the loaded word.
const AND: u16 = 0x54;
/// Ends with a verdict.
const RETURN: u16 = 0x06;

/// Where the number of the call, the architecture and the first argument lie in what a filter
/// sees (`seccomp_data`), bytes.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;
/// Bytes of one argument.
const ARGUMENT_BYTES: u32 = 8;
/// Where the low half of an argument lies in it, bytes.
const LOW_HALF_AT: u32 = if cfg!(target_endian = "big") { 4 } else { 0 };
/// As the kernel names the architecture that this program was built for (`AUDIT_ARCH_*`).
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is carried out.
    Allow,
    /// It fails with an error.
    Refuse(i32),
    /// It ends the process.
    Kill,
}

/// What an argument must be. Flags and kinds are what they are by their low half: the kernel
/// itself reads no more of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The argument's index.
    pub argument: u32,
    /// The bits that are looked at.
    pub mask: u32,
    /// What they must be,
    pub value: u32,
    /// or, where this does not hold, must not be.
    pub equal: bool,
}

/// What becomes of the calls of one number.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    /// The call is allowed where one of these holds.
    conditions: Vec<Condition>,
    /// Else this becomes of it.
    otherwise: Verdict,
}

/// Which system calls are allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    rules: BTreeMap<u32, Rule>,
}

impl Profile {
    /// Decides on calls of a number, whatever their arguments.
    pub fn set(&mut self, number: i64, verdict: Verdict) {
        self.insert(number, Rule { conditions: Vec::new(), otherwise: verdict });
    }

    /// Allows calls of a number where one of the conditions holds; else they are not permitted.
    pub fn allow_where(&mut self, number: i64, conditions: Vec<Condition>) {
        self.insert(number, Rule { conditions, otherwise: Verdict::Refuse(libc::EPERM) });
    }

    fn insert(&mut self, number: i64, rule: Rule) {
        if let Ok(number) = u32::try_from(number) {
            self.rules.insert(number, rule);
        }
    }

    /// The filter. Calls without a rule are not permitted; those that came after the newest call
    /// with one are unknown, so that programs try an older one instead.
    pub fn instructions(&self) -> Vec<u64> {
        let head = [
            instruction(LOAD, 0, 0, ARCHITECTURE_AT),
            instruction(JUMP_EQUAL, 1, 0, ARCHITECTURE),
            verdict(Verdict::Kill),
            instruction(LOAD, 0, 0, NUMBER_AT),
        ];
        let mut filter = head.to_vec();
        filter.extend(search(&self.segments()));
        filter
    }

    /// All numbers, as ranges of which each begins where it says, in their order.
    fn segments(&self) -> Vec<(u32, Rule)> {
        let plain = |otherwise| Rule { conditions: Vec::new(), otherwise };
        let unknown = plain(Verdict::Refuse(libc::ENOSYS));
        let Some(last) = self.rules.keys().next_back() else { return vec![(0, unknown)] };
        let refused = plain(Verdict::Refuse(libc::EPERM));
        let mut segments: Vec<(u32, Rule)> = Vec::new();
        let mut add = |begin, rule: &Rule| match segments.last() {
            Some((_, before)) if before == rule => {}
            _ => segments.push((begin, rule.clone())),
        };
        let mut next = 0;
        for (number, rule) in &self.rules {
            if *number > next {
                add(next, &refused);
            }
            add(*number, rule);
            next = number.saturating_add(1);
        }
        add(last.saturating_add(1), &unknown);
        segments
    }
}

/// Finds the range of the loaded number by halves.
fn search(segments: &[(u32, Rule)]) -> Vec<u64> {
    let (below, above) = segments.split_at(segments.len() / 2);
    let Some((begin, rule)) = above.first() else { return Vec::new() };
    if below.is_empty() {
        return judge(rule);
    }
    let (below, above) = (search(below), search(above));
    let mut code = vec![
        // Short jumps reach 255 instructions.
        instruction(JUMP_AT_LEAST, 0, 1, *begin),
        instruction(JUMP, 0, 0, below.len() as u32),
    ];
    code.extend(below);
    code.extend(above);
    code
}

fn judge(rule: &Rule) -> Vec<u64> {
    let mut code = Vec::new();
    for condition in &rule.conditions {
        let at = ARGUMENTS_AT + condition.argument * ARGUMENT_BYTES + LOW_HALF_AT;
        let (holds, fails) = if condition.equal { (0, 1) } else { (1, 0) };
        code.extend([
            instruction(LOAD, 0, 0, at),
            instruction(AND, 0, 0, condition.mask),
            instruction(JUMP_EQUAL, holds, fails, condition.value),
            verdict(Verdict::Allow),
        ]);
    }
    code.push(verdict(rule.otherwise));
    code
}

fn verdict(verdict: Verdict) -> u64 {
    let value = match verdict {
        Verdict::Allow => libc::SECCOMP_RET_ALLOW,
        Verdict::Refuse(error) => libc::SECCOMP_RET_ERRNO | error as u32,
        Verdict::Kill => libc::SECCOMP_RET_KILL_PROCESS,
    };
    instruction(RETURN, 0, 0, value)
}

fn instruction(code: u16, if_true: u8, if_false: u8, value: u32) -> u64 {
    u64::from(code) << 48 | u64::from(if_true) << 40 | u64::from(if_false) << 32 | u64::from(value)
}
