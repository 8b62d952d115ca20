//! The fuzz targets as a program of one input, for a fuzzer that is guided by what its inputs reach:
//! `./x fuzz` builds it for AFL++ and runs both. By itself:
//!
//! ```text
//! cargo run -p store --example fuzz -- TARGET < INPUT
//! ```

#[path = "../tests/fuzz/targets.rs"]
mod targets;

use std::io::Read;
use std::path::Path;

use targets::TARGETS;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--samples", directory] => write_samples(Path::new(directory)),
        [name] if TARGETS.iter().any(|target| target.name == *name) => run(name),
        _ => {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            eprintln!(
                "fuzz TARGET < INPUT, or fuzz --samples DIRECTORY; targets: {}",
                names.join(", ")
            );
            std::process::exit(2);
        }
    }
}

fn run(name: &str) {
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).expect("an input");
    for target in TARGETS.iter().filter(|target| target.name == name) {
        (target.check)(&input);
    }
}

/// Inputs to begin with, in a directory for each target.
fn write_samples(directory: &Path) {
    for target in TARGETS {
        let directory = directory.join(target.name);
        std::fs::create_dir_all(&directory).expect("a directory");
        for (number, sample) in (target.samples)().iter().enumerate() {
            std::fs::write(directory.join(number.to_string()), sample).expect("writes");
        }
    }
}
