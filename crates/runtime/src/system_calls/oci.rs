//! Profiles of administrators (`Localhost`): the form of the OCI's runtime specification.
//!
//! Source: opencontainers/runtime-spec, config-linux.md, "Seccomp". What no action or comparison of
//! it stands for is refused; calls that this architecture has not are passed over, as runc does.

use std::collections::BTreeSet;

use model::meta::null_as_default;
use serde::Deserialize;

use super::names::number;
use super::{Comparison, Condition, Profile, Verdict};

/// Arguments that a call has at most.
const ARGUMENTS: u32 = 6;

/// A profile as it is written. Its architectures and flags do not count: the filter judges calls of
/// this machine's own architecture, and ends processes that make others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Document {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(deserialize_with = "null_as_default")]
    syscalls: Vec<Calls>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Calls {
    #[serde(deserialize_with = "null_as_default")]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(deserialize_with = "null_as_default")]
    args: Vec<Argument>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Argument {
    index: u32,
    value: u64,
    value_two: u64,
    op: String,
}

impl Document {
    /// What it allows.
    ///
    /// # Errors
    /// For people: the word that stands for nothing here.
    pub fn profile(&self) -> Result<Profile, String> {
        let unlisted = verdict(&self.default_action, self.default_errno_ret)?;
        let mut profile = Profile::new(unlisted);
        for calls in &self.syscalls {
            let verdict = verdict(&calls.action, calls.errno_ret)?;
            if verdict == unlisted {
                continue;
            }
            let cases = calls.cases()?;
            for number in calls.names.iter().filter_map(|name| number(name)) {
                for conditions in &cases {
                    profile.add_case(number, conditions.clone(), verdict);
                }
            }
        }
        Ok(profile)
    }
}

impl Calls {
    /// All conditions together; but each alone where several are on one argument (runc's rule).
    fn cases(&self) -> Result<Vec<Vec<Condition>>, String> {
        let conditions: Vec<Condition> =
            self.args.iter().map(Argument::condition).collect::<Result<_, _>>()?;
        let arguments: BTreeSet<u32> = conditions.iter().map(|one| one.argument).collect();
        Ok(if arguments.len() == conditions.len() {
            vec![conditions]
        } else {
            conditions.into_iter().map(|condition| vec![condition]).collect()
        })
    }
}

impl Argument {
    fn condition(&self) -> Result<Condition, String> {
        if self.index >= ARGUMENTS {
            return Err(format!("no system call has an argument of index {}", self.index));
        }
        let plain = |comparison| (u64::MAX, comparison, self.value);
        let (mask, comparison, value) = match self.op.as_str() {
            "SCMP_CMP_NE" => plain(Comparison::NotEqual),
            "SCMP_CMP_LT" => plain(Comparison::Less),
            "SCMP_CMP_LE" => plain(Comparison::LessOrEqual),
            "SCMP_CMP_EQ" => plain(Comparison::Equal),
            "SCMP_CMP_GE" => plain(Comparison::GreaterOrEqual),
            "SCMP_CMP_GT" => plain(Comparison::Greater),
            "SCMP_CMP_MASKED_EQ" => (self.value, Comparison::Equal, self.value_two),
            other => return Err(format!("string {other} is not a valid operator for seccomp")),
        };
        Ok(Condition { argument: self.index, mask, comparison, value })
    }
}

fn verdict(action: &str, error: Option<u16>) -> Result<Verdict, String> {
    let error = error.unwrap_or(libc::EPERM as u16);
    Ok(match action {
        "SCMP_ACT_ALLOW" => Verdict::Allow,
        "SCMP_ACT_LOG" => Verdict::Log,
        "SCMP_ACT_ERRNO" => Verdict::Refuse(error),
        "SCMP_ACT_TRAP" => Verdict::Trap(0),
        "SCMP_ACT_TRACE" => Verdict::Trace(error),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Verdict::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Verdict::Kill,
        "SCMP_ACT_NOTIFY" => {
            return Err("SCMP_ACT_NOTIFY needs an agent that this node does not have".to_owned());
        }
        other => return Err(format!("string {other} is not a valid action for seccomp")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn profile(document: Value) -> Result<Profile, String> {
        serde_json::from_value::<Document>(document).expect("a document").profile()
    }

    #[test]
    fn a_document_is_what_its_words_say() {
        let found = profile(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [
                {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                {"names": ["mkdirat"], "action": "SCMP_ACT_ERRNO", "args": null},
                {"names": ["socket"], "action": "SCMP_ACT_LOG", "args": [
                    {"index": 0, "value": 7, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"},
                    {"index": 1, "value": 9, "op": "SCMP_CMP_LT"},
                ]},
            ],
        }));
        let mut expected = Profile::new(Verdict::Refuse(38));
        expected.set(libc::SYS_read, Verdict::Allow);
        expected.set(libc::SYS_mkdirat, Verdict::Refuse(libc::EPERM as u16));
        let condition =
            |argument, mask, comparison, value| Condition { argument, mask, comparison, value };
        let conditions = vec![
            condition(0, 7, Comparison::Equal, 2),
            condition(1, u64::MAX, Comparison::Less, 9),
        ];
        expected.add_case(libc::SYS_socket, conditions, Verdict::Log);
        assert_eq!(found, Ok(expected));
    }

    #[test]
    fn conditions_on_one_argument_are_alternatives() {
        let is = |value: u64| json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"});
        let found = profile(json!({
            "defaultAction": "SCMP_ACT_KILL_PROCESS",
            "syscalls": [
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [is(0), is(8)]},
            ],
        }));
        let mut expected = Profile::new(Verdict::Kill);
        for value in [0, 8] {
            let (mask, comparison) = (u64::MAX, Comparison::Equal);
            let condition = Condition { argument: 0, mask, comparison, value };
            expected.add_case(libc::SYS_personality, vec![condition], Verdict::Allow);
        }
        assert_eq!(found, Ok(expected));
    }

    #[test]
    fn what_stands_for_nothing_is_refused() {
        let rule = |rule: Value| {
            profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
                .expect_err("refused")
        };
        assert!(profile(json!({})).expect_err("no action").contains("not a valid action"));
        assert!(rule(json!({"names": ["read"], "action": "ALLOW"})).contains("string ALLOW"));
        assert!(rule(json!({"action": "SCMP_ACT_NOTIFY"})).contains("SCMP_ACT_NOTIFY"));
        let with = |argument: Value| rule(json!({"action": "SCMP_ACT_LOG", "args": [argument]}));
        assert!(with(json!({"index": 6, "op": "SCMP_CMP_EQ"})).contains("index 6"));
        assert!(with(json!({"index": 0, "op": "EQ"})).contains("not a valid operator"));
    }
}
