//! Several loads at once from one pod, and what they came to.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, Kubectl};

/// The share of the wanted rate that must have been reached for a run to mean anything.
const MEANINGFUL: f64 = 0.5;

/// One generator: a command of the toolbox and how much it shall send.
pub struct Generator {
    /// What it is called in reports.
    pub name: &'static str,
    /// The toolbox's words.
    pub words: Vec<String>,
    /// Requests a second.
    pub rate: u64,
}

/// Loads that run.
pub struct Load {
    running: Vec<(Generator, Child)>,
    seconds: u64,
}

/// What loads came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Requests that were sent.
    pub requests: u64,
    /// Connections refused, reset or late, and datagrams without an answer.
    pub failed: u64,
    /// Streams that were closed while nothing was under way.
    pub cut: u64,
    /// Whether a generator sent too little to mean anything: what failed did, but that nothing
    /// failed says nothing.
    pub is_inconclusive: bool,
}

impl Load {
    /// Starts all generators in a pod, for some seconds.
    ///
    /// # Errors
    /// When kubectl cannot be started.
    pub fn start(
        cluster: &Cluster,
        namespace: &str,
        pod: &str,
        generators: Vec<Generator>,
        seconds: u64,
    ) -> Result<Self> {
        Self::start_by(generators, seconds, |toolbox| {
            let exec = ["exec", "-n", namespace, pod, "--", "toolbox"];
            cluster.kubectl_command(Kubectl::Old, &[&exec, toolbox].concat())
        })
    }

    /// Starts all generators where the program runs that is made of a toolbox's words.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start_by(
        generators: Vec<Generator>,
        seconds: u64,
        program: impl Fn(&[&str]) -> Command,
    ) -> Result<Self> {
        let mut running = Vec::new();
        for generator in generators {
            let (rate, duration) = (generator.rate.to_string(), seconds.to_string());
            let mut words: Vec<&str> = generator.words.iter().map(String::as_str).collect();
            words.extend(["--rate", &rate, "--duration-s", &duration]);
            let mut command = program(&words);
            command.stdin(Stdio::null());
            let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            running.push((generator, child));
        }
        Ok(Self { running, seconds })
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When a generator did not run, or sent too little to mean anything.
    pub fn finish(self) -> Result<Outcome> {
        let outcome = self.outcome()?;
        ensure!(!outcome.is_inconclusive, "too little load: {outcome:?}");
        Ok(outcome)
    }

    /// The same, also where too little was sent.
    ///
    /// # Errors
    /// When a generator did not run.
    pub fn outcome(self) -> Result<Outcome> {
        let mut all = Outcome::default();
        for (generator, child) in self.running {
            let output = child.wait_with_output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let said = || format!("{text} {}", String::from_utf8_lossy(&output.stderr));
            let result: Value = serde_json::from_str(&text)
                .with_context(|| format!("{}: {}", generator.name, said()))?;
            let number = |name: &str| result[name].as_u64().with_context(said);
            let requests = number("requests")?;
            let wanted = (generator.rate * self.seconds) as f64 * MEANINGFUL;
            if (requests as f64) < wanted {
                println!("    {}: too little load: {result}", generator.name);
                all.is_inconclusive = true;
            }
            let (failed, cut) = (number("failed")?, number("resent")?);
            println!(
                "    {}: {requests} requests, {failed} failed {}, {cut} streams cut",
                generator.name, result["errors"]
            );
            all.requests += requests;
            all.failed += failed;
            all.cut += cut;
        }
        Ok(all)
    }
}
