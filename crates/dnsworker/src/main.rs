//! `flatnet-dnsworker`: the DNS worker as a program of its own, a tenth of the size of `flatnet`.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use dnsworker::Options;

const USAGE: &str = "\
Usage: flatnet-dnsworker --socket FD... --feed PATH [--upstream ADDRESS:PORT]...
                         [--upstream-netns PATH] [--cache-file PATH] [--config PATH]
                         [--control PATH]

  --socket          an inherited UDP or listening TCP socket at the DNS address; repeat
  --feed            the agent's unix socket that zones come from
  --upstream        a server for names outside the cluster, the preferred first; repeat
  --upstream-netns  the network namespace that upstream servers are reached from
  --cache-file      keeps the newest zone for a restarted worker
  --config          the configuration
  --control         the unix socket to answer root's questions at
";

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let outcome = read(std::env::args().skip(1)).and_then(|options| dnsworker::run(&options));
    let Err(error) = outcome;
    eprintln!("flatnet-dnsworker: {error:#}");
    ExitCode::FAILURE
}

fn read(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options::default();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value\n{USAGE}"));
        match word.as_str() {
            "--socket" => options.sockets.push(value()?.parse().context("--socket")?),
            "--upstream" => options.upstreams.push(value()?.parse().context("--upstream")?),
            "--upstream-netns" => options.upstream_network_namespace = Some(value()?.into()),
            "--feed" => options.feed_socket = value()?.into(),
            "--config" => options.config_file = Some(value()?.into()),
            "--control" => options.control_socket = Some(value()?.into()),
            "--cache-file" => options.cache_file = Some(value()?.into()),
            _ => bail!("there is no option {word}\n{USAGE}"),
        }
    }
    if options.feed_socket.as_os_str().is_empty() {
        bail!("--feed is missing\n{USAGE}");
    }
    Ok(options)
}
