//! Which test programs have run in the emulated kernel, when it took more than one boot.
//!
//! The interpreted kernel was seen to stand still for good on machines of others: once before any
//! test, once with a processor that never came back from sending a datagram. Neither could be
//! brought about again (220 boots, 40 runs of those tests). So what has not ended runs once more
//! after a new boot, whose processors the emulator interprets in turns: then it has no races of its
//! own. A program that stops the machine a second time has a fault, or finds one of the kernel: it
//! fails.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

use super::machine::{Processors, Said};
use super::report::{self, Section};

/// So often the machine is booted in all.
const BOOTS: usize = 4;

/// How far the suite is.
pub struct Progress {
    left: BTreeSet<String>,
    ended: BTreeMap<String, Section>,
    /// Where the machine stood still: a program, or none before the first.
    stops: Vec<Option<String>>,
}

impl Progress {
    /// Nothing has run of these programs (package, test).
    pub fn new<'a>(programs: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        Self {
            left: programs.map(|(package, test)| name(package, test)).collect(),
            ended: BTreeMap::new(),
            stops: Vec::new(),
        }
    }

    /// Whether nothing is left to run.
    pub fn has_ended(&self) -> bool {
        self.left.is_empty()
    }

    /// Whether this program has still to run.
    pub fn is_left(&self, package: &str, test: &str) -> bool {
        self.left.contains(&name(package, test))
    }

    /// How to interpret the processors of the next boot: once the machine has stood still, so that
    /// the emulator has no part in it.
    pub fn processors(&self) -> Processors {
        if self.stops.is_empty() { Processors::AtOnce } else { Processors::InTurns }
    }

    /// What was said of each program.
    pub fn sections(self) -> BTreeMap<String, Section> {
        self.ended
    }

    /// Takes what a machine said. One that switched itself off leaves nothing to run: a program of
    /// which it said nothing has failed.
    ///
    /// # Errors
    /// When a program has stopped the machine for the second time, or there were too many boots.
    pub fn add(&mut self, said: Said) -> Result<()> {
        let mut under_way = None;
        for (name, section) in report::read(&said.results) {
            if section.exit_code.is_none() && said.trouble.is_some() {
                under_way = Some(name);
            } else if self.left.remove(&name) {
                self.ended.insert(name, section);
            }
        }
        let Some(trouble) = said.trouble else {
            let unsaid = std::mem::take(&mut self.left);
            self.ended.extend(unsaid.into_iter().map(|name| (name, Section::default())));
            return Ok(());
        };
        let place = under_way.as_deref().unwrap_or("no test");
        let again = under_way.is_some() && self.stops.contains(&under_way);
        if again || self.stops.len() + 1 == BOOTS {
            bail!("the emulated machine stopped, again, during {place}: {trouble}");
        }
        eprintln!("   the emulated machine stopped during {place}, and is booted anew: {trouble}");
        self.stops.push(under_way);
        Ok(())
    }
}

fn name(package: &str, test: &str) -> String {
    format!("{package}/{test}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> Progress {
        Progress::new([("k", "one"), ("k", "two"), ("k", "three")].into_iter())
    }

    fn stopped(results: &str) -> Said {
        Said { results: results.to_owned(), trouble: Some("BUG: soft lockup".to_owned()) }
    }

    const ONE: &str = "@@begin k/one\ntest a ... ok\n@@end k/one 0\n";
    const HALF_OF_TWO: &str = "@@begin k/two\ntest b ... ok\n";

    #[test]
    fn what_had_not_ended_when_the_machine_stopped_runs_again() -> Result<()> {
        let mut progress = progress();
        progress.add(stopped(&format!("{ONE}{HALF_OF_TWO}")))?;
        let left = ["one", "two", "three"].map(|test| progress.is_left("k", test));
        assert_eq!(left, [false, true, true]);
        assert_eq!(progress.processors(), Processors::InTurns);
        let rest = format!("{HALF_OF_TWO}test c ... FAILED\n@@end k/two 101\n@@begin k/three\n");
        progress.add(Said { results: rest + "@@end k/three 0\n@@off\n", trouble: None })?;
        assert!(progress.has_ended());
        let sections = progress.sections();
        let passed: Vec<bool> = sections.values().map(Section::has_passed).collect();
        assert_eq!(passed, [true, true, false], "one, three, two: {sections:?}");
        assert_eq!(sections["k/two"].tests.len(), 2);
        Ok(())
    }

    #[test]
    fn a_program_that_stops_the_machine_twice_fails() -> Result<()> {
        let mut progress = progress();
        progress.add(stopped(&format!("{ONE}{HALF_OF_TWO}")))?;
        let error = progress.add(stopped(HALF_OF_TWO)).expect_err("the second time");
        assert!(error.to_string().contains("during k/two: BUG"), "{error}");
        Ok(())
    }

    #[test]
    fn a_machine_that_never_comes_up_is_not_booted_for_ever() -> Result<()> {
        let mut progress = progress();
        for _ in 1..BOOTS {
            progress.add(stopped(""))?;
        }
        assert!(progress.add(stopped("")).is_err());
        Ok(())
    }

    #[test]
    fn a_program_of_which_nothing_was_said_has_failed() -> Result<()> {
        let mut progress = progress();
        progress.add(Said { results: format!("{ONE}@@off\n"), trouble: None })?;
        let failed = progress.sections().values().filter(|one| !one.has_passed()).count();
        assert_eq!(failed, 2);
        Ok(())
    }
}
