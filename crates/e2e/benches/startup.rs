//! From the start of `flatnet up --demo` to the first answer through a Service, and the memory of
//! all of flatnet's own processes then (goal G19: under a second, under 60 MB).
//!
//! `./x bench startup` runs it; it needs root.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use e2e::cluster::flatnet;
use serde_json::Value;

const NAME: &str = "bench";
/// Counted rounds, after one that warms caches up.
const ROUNDS: usize = 7;
/// What is measured: label, place in the answer of `up`, divisor, unit.
const FIGURES: [(&str, &str, f64, &str); 3] = [
    ("exec to all nodes ready", "/readyMs", 1.0, "ms"),
    ("exec to the first answer", "/demo/firstAnswerMs", 1.0, "ms"),
    ("memory, sum of PSS", "/demo/memoryKilobytes", 1024.0, "MB"),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("startup: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut samples: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 0..=ROUNDS {
        let outcome = up_and_down()?;
        for (label, pointer, divisor, _) in FIGURES {
            let value = outcome.pointer(pointer).and_then(Value::as_f64);
            let value = value.with_context(|| format!("no {pointer} in the answer of `up`"))?;
            if round > 0 {
                samples.entry(label).or_default().push(value / divisor);
            }
        }
    }
    println!("{:<28}{:>10}{:>10}{:>10}", "three nodes, seven pods", "min", "median", "max");
    for (label, _, _, unit) in FIGURES {
        let values = samples.get_mut(label).context("no samples")?;
        values.sort_by(f64::total_cmp);
        let [min, median, max] = [0, values.len() / 2, values.len() - 1].map(|at| values[at]);
        println!("{label:<28}{min:>10.1}{median:>10.1}{max:>10.1} {unit}");
    }
    Ok(())
}

fn up_and_down() -> Result<Value> {
    flatnet(&["down", "--name", NAME])?;
    let ranges = [
        "--pod-cidr",
        "10.46.0.0/16",
        "--service-cidr",
        "10.47.0.0/16",
        "--node-cidr",
        "172.29.7.0/24",
    ];
    let mut arguments = vec!["up", "--name", NAME, "--demo", "--output", "json"];
    arguments.extend(ranges);
    let outcome = flatnet(&arguments);
    flatnet(&["down", "--name", NAME])?;
    let outcome: Value = serde_json::from_str(&outcome?)?;
    if outcome["demo"].is_null() {
        bail!("the demo says nothing");
    }
    Ok(outcome)
}
