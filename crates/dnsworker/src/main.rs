//! `flatnet-dnsworker`: the DNS worker, a program of its own: it shall take little memory on every
//! node, be back at once, and have in it nothing that it does not need.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use dnsworker::{IS_READY, Options};

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let done = match words.as_slice() {
        [word, control] if word == IS_READY => dnsworker::is_ready(Path::new(control)),
        _ => Options::read(words).and_then(|options| dnsworker::run(&options)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flatnet-dnsworker: {error:#}");
            ExitCode::FAILURE
        }
    }
}
