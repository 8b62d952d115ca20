//! Random numbers of the kernel, fetched in handfuls.

use anyhow::{Result, bail};

/// Numbers for one thread.
#[derive(Default)]
pub(crate) struct Randomness {
    numbers: Vec<u64>,
    error: Option<getrandom::Error>,
}

impl Randomness {
    /// Numbers fetched at once.
    const HANDFUL: usize = 32;

    pub(crate) fn next(&mut self) -> u64 {
        if self.numbers.is_empty() {
            let mut octets = [0; Self::HANDFUL * 8];
            self.error = getrandom::fill(&mut octets).err().or(self.error);
            let numbers = octets.as_chunks::<8>().0.iter().map(|one| u64::from_ne_bytes(*one));
            self.numbers.extend(numbers);
        }
        self.numbers.pop().unwrap_or_default()
    }

    /// Nothing is sent under a number that can be guessed.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.error {
            Some(error) => bail!("the kernel gives no random numbers: {error}"),
            None => Ok(()),
        }
    }
}
