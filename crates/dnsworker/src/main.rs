//! `flatnet-dnsworker`: the DNS worker, a program of its own: it shall take little memory on every
//! node, be back at once, and have in it nothing that it does not need.

use std::process::ExitCode;

use dnsworker::Options;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let words = std::env::args_os().skip(1);
    match Options::read(words).and_then(|options| dnsworker::run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flatnet-dnsworker: {error:#}");
            ExitCode::FAILURE
        }
    }
}
