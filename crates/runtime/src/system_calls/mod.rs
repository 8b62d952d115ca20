//! Filters of system calls (seccomp): from a list of what is allowed to the kernel's instructions.
//! Pure.
//!
//! Source: kernel.org, "Seccomp BPF"; the instructions are those of the classic packet filter.

mod names;
mod oci;
mod runtime_default;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use oci::Document;
pub use runtime_default::runtime_default;

/// Loads a word of what the filter sees.
const LOAD: u16 = 0x20;
/// Goes on elsewhere.
const JUMP: u16 = 0x05;
/// Goes on elsewhere where the loaded word is a constant.
const JUMP_EQUAL: u16 = 0x15;
/// Goes on elsewhere where the loaded word is larger than a constant.
const JUMP_ABOVE: u16 = 0x25;
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
/// Where the halves of an argument lie in it, bytes.
const LOW_HALF_AT: u32 = if cfg!(target_endian = "big") { 4 } else { 0 };
const HIGH_HALF_AT: u32 = 4 - LOW_HALF_AT;
/// As many instructions as the kernel takes (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;
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
    /// It is carried out, and the kernel's log tells of it.
    Log,
    /// It fails with an error.
    Refuse(u16),
    /// Its thread gets the signal SIGSYS instead.
    Trap(u16),
    /// Whoever traces the process decides; without one it fails.
    Trace(u16),
    /// It ends the thread.
    KillThread,
    /// It ends the process.
    Kill,
}

/// What an argument must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The argument's index.
    pub argument: u32,
    /// The bits that are looked at. Of flags and kinds the kernel itself reads the low half alone.
    pub mask: u64,
    /// How they must compare
    pub comparison: Comparison,
    /// with this.
    pub value: u64,
}

/// How an argument compares with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// What becomes of a call where all of the conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Case {
    conditions: Vec<Condition>,
    verdict: Verdict,
}

/// What becomes of the calls of one number: the first of the cases decides that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    cases: Vec<Case>,
    otherwise: Verdict,
}

/// Which system calls are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    rules: BTreeMap<u32, Rule>,
    /// What becomes of calls without a rule,
    unlisted: Verdict,
    /// and of those that came after the newest call with one.
    newer: Verdict,
}

impl Profile {
    /// A profile without rules. Calls newer than all rules are unknown where others are refused,
    /// so that programs try an older one instead.
    pub fn new(unlisted: Verdict) -> Self {
        let newer = match unlisted {
            Verdict::Allow | Verdict::Log => unlisted,
            _ => Verdict::Refuse(libc::ENOSYS as u16),
        };
        Self { rules: BTreeMap::new(), unlisted, newer }
    }

    /// Decides on calls of a number, whatever their arguments.
    pub fn set(&mut self, number: i64, verdict: Verdict) {
        self.insert(number, Rule { cases: Vec::new(), otherwise: verdict });
    }

    /// Allows calls of a number where one of the conditions holds; else they are as without a rule.
    pub fn allow_where(&mut self, number: i64, conditions: Vec<Condition>) {
        let cases = conditions.into_iter();
        let cases = cases.map(|one| Case { conditions: vec![one], verdict: Verdict::Allow });
        self.insert(number, Rule { cases: cases.collect(), otherwise: self.unlisted });
    }

    /// Decides on calls of a number where all of the conditions hold, after the cases that are
    /// known. What holds whatever the arguments are takes their place.
    pub fn add_case(&mut self, number: i64, conditions: Vec<Condition>, verdict: Verdict) {
        let Ok(number) = u32::try_from(number) else { return };
        let plain = Rule { cases: Vec::new(), otherwise: self.unlisted };
        let rule = self.rules.entry(number).or_insert(plain);
        if conditions.is_empty() {
            *rule = Rule { cases: Vec::new(), otherwise: verdict };
        } else if rule.otherwise == self.unlisted {
            rule.cases.push(Case { conditions, verdict });
        }
    }

    fn insert(&mut self, number: i64, rule: Rule) {
        if let Ok(number) = u32::try_from(number) {
            self.rules.insert(number, rule);
        }
    }

    /// The filter.
    ///
    /// # Errors
    /// When it is longer than the kernel takes.
    pub fn instructions(&self) -> Result<Vec<u64>, String> {
        let head = [
            instruction(LOAD, 0, 0, ARCHITECTURE_AT),
            instruction(JUMP_EQUAL, 1, 0, ARCHITECTURE),
            verdict(Verdict::Kill),
            instruction(LOAD, 0, 0, NUMBER_AT),
        ];
        let mut filter = head.to_vec();
        filter.extend(search(&self.segments()));
        if filter.len() > MAX_INSTRUCTIONS {
            let length = filter.len();
            return Err(format!(
                "it comes to {length} instructions, and the kernel takes {MAX_INSTRUCTIONS}"
            ));
        }
        Ok(filter)
    }

    /// All numbers, as ranges of which each begins where it says, in their order.
    fn segments(&self) -> Vec<(u32, Rule)> {
        let plain = |otherwise| Rule { cases: Vec::new(), otherwise };
        let newer = plain(self.newer);
        let Some(last) = self.rules.keys().next_back() else { return vec![(0, newer)] };
        let unlisted = plain(self.unlisted);
        let mut segments: Vec<(u32, Rule)> = Vec::new();
        let mut add = |begin, rule: &Rule| match segments.last() {
            Some((_, before)) if before == rule => {}
            _ => segments.push((begin, rule.clone())),
        };
        let mut next = 0;
        for (number, rule) in &self.rules {
            if *number > next {
                add(next, &unlisted);
            }
            add(*number, rule);
            next = number.saturating_add(1);
        }
        add(last.saturating_add(1), &newer);
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
    for case in &rule.cases {
        // From the last condition to the first: each knows how far it is to the end of the case.
        let mut rest = vec![verdict(case.verdict)];
        for condition in case.conditions.iter().rev() {
            let mut tested = test(condition, rest.len());
            tested.append(&mut rest);
            rest = tested;
        }
        code.extend(rest);
    }
    code.push(verdict(rule.otherwise));
    code
}

/// Where an instruction of a test goes on.
#[derive(Clone, Copy)]
enum Then {
    /// With the next one.
    Next,
    /// The condition holds: behind the test.
    Holds,
    /// It fails: behind all of the case.
    Fails,
}

/// Goes on behind itself where a condition holds, and else `rest` instructions further.
fn test(condition: &Condition, rest: usize) -> Vec<u64> {
    use Comparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    use Then::{Fails, Holds, Next};
    // What is not less is greater or equal, and so on.
    let (holds, fails) = match condition.comparison {
        Equal | Greater | GreaterOrEqual => (Holds, Fails),
        NotEqual | Less | LessOrEqual => (Fails, Holds),
    };
    let last = match condition.comparison {
        Equal | NotEqual => JUMP_EQUAL,
        Greater | LessOrEqual => JUMP_ABOVE,
        GreaterOrEqual | Less => JUMP_AT_LEAST,
    };
    let at = ARGUMENTS_AT + condition.argument * ARGUMENT_BYTES;
    let halves = |number: u64| ((number >> 32) as u32, number as u32);
    let (mask, value) = (halves(condition.mask), halves(condition.value));
    let mut code = Vec::new();
    if (mask.0, value.0) != (0, 0) {
        code.push((LOAD, Next, Next, at + HIGH_HALF_AT));
        code.push((AND, Next, Next, mask.0));
        if last != JUMP_EQUAL {
            code.push((JUMP_ABOVE, holds, Next, value.0));
        }
        // Halves that differ decide, and only equal ones leave it to the low ones.
        code.push((JUMP_EQUAL, Next, fails, value.0));
    }
    code.push((LOAD, Next, Next, at + LOW_HALF_AT));
    code.push((AND, Next, Next, mask.1));
    code.push((last, holds, fails, value.1));
    let length = code.len();
    let resolve = |(index, (code, if_true, if_false, value)): (usize, (u16, Then, Then, u32))| {
        let behind = length - index - 1;
        let distance = |then: Then| match then {
            Next => 0,
            Holds => behind as u8,
            // Six arguments are tested by at most seven instructions each.
            Fails => (behind + rest) as u8,
        };
        instruction(code, distance(if_true), distance(if_false), value)
    };
    code.into_iter().enumerate().map(resolve).collect()
}

fn verdict(verdict: Verdict) -> u64 {
    let value = match verdict {
        Verdict::Allow => libc::SECCOMP_RET_ALLOW,
        Verdict::Log => libc::SECCOMP_RET_LOG,
        Verdict::Refuse(error) => libc::SECCOMP_RET_ERRNO | u32::from(error),
        Verdict::Trap(data) => libc::SECCOMP_RET_TRAP | u32::from(data),
        Verdict::Trace(data) => libc::SECCOMP_RET_TRACE | u32::from(data),
        Verdict::KillThread => libc::SECCOMP_RET_KILL_THREAD,
        Verdict::Kill => libc::SECCOMP_RET_KILL_PROCESS,
    };
    instruction(RETURN, 0, 0, value)
}

fn instruction(code: u16, if_true: u8, if_false: u8, value: u32) -> u64 {
    u64::from(code) << 48 | u64::from(if_true) << 40 | u64::from(if_false) << 32 | u64::from(value)
}
