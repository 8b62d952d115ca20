//! The CNI plugin `flatnet`: environment and standard input in, one JSON document out.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let answer = cni::run(|name| std::env::var(name).ok(), std::io::stdin().lock());
    // One document and nothing else on standard output (CNI-07).
    let written = writeln!(std::io::stdout().lock(), "{}", answer.text);
    if answer.success && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
