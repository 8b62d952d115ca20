//! Memory that a process has freed or no longer reads, given back to the machine.
//!
//! A first list, or the reading back of a large kernel table, makes and frees many times what is
//! kept of it. The C library gives back only what lies at the end of its heap: what is kept stands
//! scattered over the rest, and pages between stay the process's for good. They are given back here
//! whenever the process has become quiet, which page faults tell: no page can have been freed that
//! was not touched before.
//!
//! Pages of the program go too, the first time and after much was done: a start reads most of it,
//! itself or because the kernel maps sixteen pages where one is read, and what comes after reads a
//! third of that.

mod allocator;
mod program;

use std::convert::Infallible;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};

pub use allocator::give_back;
pub use program::let_go;

/// The wait before the first look, and between two looks of a busy process.
const WAIT_MIN: Duration = Duration::from_millis(125);
/// The wait between two looks of a process that has long been quiet.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// The wait after memory was given back: bounds what giving back can cost.
const REST: Duration = Duration::from_secs(1);
/// A process that touches no more pages than these between two looks is quiet.
const QUIET_PAGES_MAX: u64 = 64;
/// Fewer touched pages than these are not worth a walk through the heap: a megabyte.
const WORTH_PAGES_MIN: u64 = 256;
/// After the first time, fewer touched pages than these are not worth letting go of the program: to
/// map again what is read takes two hundred page faults.
const PROGRAM_WORTH_PAGES_MIN: u64 = 2048;

/// Gives back what this process frees, for as long as it runs.
pub async fn keep_giving_back() -> Infallible {
    let mut keeper = Keeper::default();
    loop {
        tokio::time::sleep(keeper.look()).await;
    }
}

/// Gives back what this process frees, for programs with a loop of their own.
#[derive(Debug, Default)]
pub struct Keeper(Pace);

impl Keeper {
    /// Gives memory back if it is time to; answers how long to wait until the next look.
    pub fn look(&mut self) -> Duration {
        let touched = touched_pages();
        let verdict = self.0.judge(touched);
        if verdict.give_back {
            give_back();
        }
        if verdict.let_go {
            let_go();
        }
        verdict.wait
    }
}

/// The pages that this process has touched for the first time, or again after they were given back.
fn touched_pages() -> u64 {
    // It fails for no process that asks about itself.
    let usage = getrusage(UsageWho::RUSAGE_SELF).map(|usage| usage.minor_page_faults());
    usage.ok().and_then(|faults| u64::try_from(faults).ok()).unwrap_or_default()
}

/// When memory is given back.
#[derive(Debug, Default)]
struct Pace {
    /// Pages touched until the last look.
    looked_at: u64,
    /// Pages touched until memory was given back last.
    given_back_at: u64,
    /// Pages touched until the program was let go of last.
    let_go_at: Option<u64>,
    /// The last wait.
    wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    give_back: bool,
    /// Of the program.
    let_go: bool,
    wait: Duration,
}

impl Pace {
    /// `touched`: all pages that were touched until now.
    fn judge(&mut self, touched: u64) -> Verdict {
        let is_quiet = touched.saturating_sub(self.looked_at) <= QUIET_PAGES_MAX;
        let is_worth_it = touched.saturating_sub(self.given_back_at) >= WORTH_PAGES_MIN;
        self.looked_at = touched;
        let give_back = is_quiet && is_worth_it;
        let since = self.let_go_at.map(|at| touched.saturating_sub(at));
        let let_go = give_back && since.is_none_or(|pages| pages >= PROGRAM_WORTH_PAGES_MIN);
        if give_back {
            self.given_back_at = touched;
        }
        if let_go {
            self.let_go_at = Some(touched);
        }
        self.wait = match (give_back, is_quiet) {
            (true, _) => REST,
            (false, true) => (self.wait * 2).clamp(WAIT_MIN, WAIT_MAX),
            (false, false) => WAIT_MIN,
        };
        Verdict { give_back, let_go, wait: self.wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(wait: Duration) -> Verdict {
        Verdict { give_back: false, let_go: false, wait }
    }

    #[test]
    fn memory_is_given_back_once_after_each_burst_and_not_during_it() {
        let give_back = Verdict { give_back: true, let_go: false, wait: REST };
        let mut pace = Pace::default();
        assert_eq!(pace.judge(2_000), wait(WAIT_MIN), "it starts");
        assert_eq!(pace.judge(9_000), wait(WAIT_MIN), "it goes on");
        let first = Verdict { let_go: true, ..give_back };
        assert_eq!(pace.judge(9_000 + QUIET_PAGES_MAX), first);
        assert_eq!(pace.judge(9_000 + QUIET_PAGES_MAX), wait(WAIT_MAX), "nothing is new");
        assert_eq!(pace.judge(9_500), wait(WAIT_MIN), "something comes");
        assert_eq!(pace.judge(9_500), give_back, "the program is what it was");
        let much = 9_000 + QUIET_PAGES_MAX + PROGRAM_WORTH_PAGES_MIN;
        assert_eq!(pace.judge(much), wait(WAIT_MIN));
        assert_eq!(pace.judge(much), first, "most of it may have been read");
    }

    #[test]
    fn a_few_pages_are_not_worth_it_until_they_are_many() {
        let mut pace = Pace::default();
        let (mut touched, mut looks) = (0, 0);
        while !pace.judge(touched).give_back {
            touched += QUIET_PAGES_MAX;
            looks += 1;
        }
        assert_eq!((touched, looks), (WORTH_PAGES_MIN, WORTH_PAGES_MIN / QUIET_PAGES_MAX));
    }

    #[test]
    fn a_quiet_process_is_looked_at_ever_less_often() {
        let mut pace = Pace::default();
        let waits: Vec<u128> = (0..6).map(|_| pace.judge(10).wait.as_millis()).collect();
        assert_eq!(waits, [125, 250, 500, 1_000, 2_000, 2_000]);
    }

    #[test]
    fn pages_that_are_touched_count() {
        let before = touched_pages();
        let pages = vec![1_u8; 16 << 20];
        assert!(touched_pages() > before, "{} bytes", std::hint::black_box(pages).len());
    }
}
