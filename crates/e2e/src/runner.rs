//! Runs scenarios one after another on one cluster and counts them, in the form that test runners
//! print.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use anyhow::{Result, anyhow};

/// One scenario: a name and what it does on the shared value.
pub type Scenario<T> = (&'static str, fn(&T) -> Result<()>);

/// Whether the command line chooses any of these scenarios.
pub fn is_any_chosen<T>(scenarios: &[Scenario<T>]) -> bool {
    let words = words();
    scenarios.iter().any(|(name, _)| is_chosen(name, &words))
}

/// Runs the scenarios whose names contain one of the command line's words (all without words).
/// Answers how many failed.
pub fn run<T>(suite: &str, shared: &T, scenarios: &[Scenario<T>]) -> usize {
    let words = words();
    let (mut passed, mut failed, mut left_out) = (0, 0, 0);
    for (name, scenario) in scenarios {
        if !is_chosen(name, &words) {
            left_out += 1;
            continue;
        }
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| scenario(shared)));
        let result = result.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(anyhow!("panicked: {}", text.unwrap_or_else(|| "see above".into())))
        });
        let took = started.elapsed().as_secs_f32();
        match result {
            Ok(()) => {
                passed += 1;
                println!("test {suite}::{name} ... ok ({took:.1} s)");
            }
            Err(error) => {
                failed += 1;
                println!("test {suite}::{name} ... FAILED ({took:.1} s)\n    {error:#}");
            }
        }
    }
    println!(
        "\ntest result: {}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {left_out} filtered out",
        if failed == 0 { "ok" } else { "FAILED" }
    );
    failed
}

fn words() -> Vec<String> {
    std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect()
}

fn is_chosen(name: &str, words: &[String]) -> bool {
    words.is_empty() || words.iter().any(|word| name.contains(word))
}
