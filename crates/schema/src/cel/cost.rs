//! What an evaluation costs (cel-go's `CostTracker` and the libraries of the apiserver): a step is
//! one, a text a tenth of its length.

use regex_lite::{Regex, RegexBuilder};

use super::{Error, MAX_PATTERN_BYTES, PER_CALL_LIMIT};

/// Making a list, and a map.
pub(super) const LIST: usize = 10;
pub(super) const MAP: usize = 30;
/// Asking who may do what, beside its one step: two questions an expression are affordable.
pub(super) const CHECK: usize = 349_999;
/// Bytes that a compiled pattern takes, a factor of four apart: what matching costs follows from it.
const PATTERN_CLASSES: &[usize] = &[4 * 1024, 16 * 1024, 64 * 1024, MAX_PATTERN_BYTES];
/// Compiled bytes of a pattern that cost as much as one step for ten characters of text.
const PATTERN_BYTES_A_STEP: usize = 160;

/// Bytes of a name that cost one step more.
const NAME_BYTES_A_STEP: usize = 100;

/// Counts what an evaluation costs.
#[derive(Debug, Default)]
pub(super) struct Meter {
    spent: u64,
}

/// A regular expression, and what it costs to match ten characters.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    pub(super) regex: Regex,
    weight: usize,
}

impl Meter {
    pub(super) fn spent(&self) -> u64 {
        self.spent
    }

    pub(super) fn charge(&mut self, steps: usize) -> Result<(), Error> {
        self.spent = self.spent.saturating_add(u64::try_from(steps).unwrap_or(u64::MAX));
        if self.spent > PER_CALL_LIMIT { Err(Error::CostLimit) } else { Ok(()) }
    }

    /// A step by a name: long ones take longer to compare.
    pub(super) fn charge_name(&mut self, length: usize) -> Result<(), Error> {
        self.charge(1 + length / NAME_BYTES_A_STEP)
    }

    /// Walking a text once.
    pub(super) fn charge_text(&mut self, length: usize) -> Result<(), Error> {
        self.charge(length.div_ceil(10))
    }

    /// Looking for one text in another.
    pub(super) fn charge_search(&mut self, length: usize, wanted: usize) -> Result<(), Error> {
        self.charge(length.div_ceil(10).saturating_mul(wanted.div_ceil(10).max(1)))
    }

    pub(super) fn charge_match(&mut self, length: usize, pattern: &Pattern) -> Result<(), Error> {
        self.charge((length + 1).div_ceil(10).saturating_mul(pattern.weight))
    }
}

impl Pattern {
    /// Compiles a pattern.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let mut last = String::new();
        for class in PATTERN_CLASSES {
            match RegexBuilder::new(text).size_limit(*class).build() {
                Ok(regex) => {
                    let least = text.len().div_ceil(4).max(1);
                    let by_size = class.checked_div(PATTERN_BYTES_A_STEP).unwrap_or(0);
                    // The smallest ones cost what cel-go takes for them.
                    let is_small = Some(class) == PATTERN_CLASSES.first();
                    return Ok(Self { regex, weight: if is_small { least } else { by_size } });
                }
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }
}
