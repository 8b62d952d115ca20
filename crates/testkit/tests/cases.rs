//! Every case file in memory: the oracle and the rules agree, and the file says what they say.
//!
//! `FLATNET_CASE=NAME` runs one; `FLATNET_BLESS=1` writes the expectations anew, but never over a
//! disagreement between executors.

use testkit::case::{self, run};

/// So many behaviours are described at least; a lost directory must not pass.
const CASES_MIN: usize = 360;

#[test]
fn oracle_and_rules_agree_in_every_case() {
    let only = std::env::var("FLATNET_CASE").ok();
    let bless = std::env::var_os("FLATNET_BLESS").is_some();
    let paths = case::find(&case::directory()).expect("the cases");
    assert!(paths.len() >= CASES_MIN, "only {} cases below cases/", paths.len());
    let mut failed = Vec::new();
    let (mut count, mut packets) = (0, 0);
    for path in paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        count += 1;
        let outcome = match run::file(&path) {
            Ok(outcome) => outcome,
            Err(error) => {
                failed.push(format!("{name}: {error:#}"));
                continue;
            }
        };
        packets += outcome.packets;
        failed.extend(outcome.faults.iter().map(|fault| format!("{name}: {fault}")));
        if bless && outcome.faults.is_empty() {
            std::fs::write(&path, &outcome.blessed).expect("the case is writable");
        } else {
            let differences = outcome.differences.iter();
            failed.extend(differences.map(|difference| format!("{name}: {difference}")));
        }
    }
    assert!(count > 0, "no case has the name {only:?}");
    assert!(failed.is_empty(), "{} faults:\n  {}", failed.len(), failed.join("\n  "));
    println!("{count} cases, {packets} packets");
}
