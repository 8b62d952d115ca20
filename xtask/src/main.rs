//! Every developer command, behind `./x`. This file is the table of contents.

mod build;
mod check;
mod disk;
mod emulated;
mod fields;
mod fuzz;
mod layers;
mod process;
mod programs;
mod source;
mod tests;
mod tidy;
mod tools;

use std::process::ExitCode;

use anyhow::{Result, bail};

/// One developer command.
struct Command {
    name: &'static str,
    arguments: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "check",
        arguments: "",
        about: "format, lints, layers, tidy and licences: all that needs no test run",
        run: check::check,
    },
    Command {
        name: "layers",
        arguments: "",
        about: "which crate may use which crate and which part of std",
        run: layers::run,
    },
    Command {
        name: "tidy",
        arguments: "[--ratchet]",
        about: "file and function sizes, headings, unsafe, unreferenced files",
        run: tidy::run,
    },
    Command {
        name: "test",
        arguments: "[--pure]",
        about: "all tests, those that need root last; --pure: only those that need nothing",
        run: tests::test,
    },
    Command {
        name: "emulated",
        arguments: "[PACKAGE/TEST [NAME …]]",
        about: "tests in an emulated kernel 6.1, with what this kernel lacks",
        run: emulated::run,
    },
    Command {
        name: "fields",
        arguments: "K8S-PB-SOURCES DEFINITIONS",
        about: "crates/schema's table of the API's fields, from the published definitions",
        run: fields::run,
    },
    Command {
        name: "case",
        arguments: "NAME",
        about: "one behaviour of cases/ through every executor",
        run: tests::case,
    },
    Command {
        name: "bless",
        arguments: "[NAME]",
        about: "write the expectations of cases/ anew; review the diff",
        run: tests::bless,
    },
    Command {
        name: "chaos",
        arguments: "[--minutes N] [--seed S]",
        about: "a cluster under random kills and damage for a minute or N; a seed replays",
        run: tests::chaos,
    },
    Command {
        name: "fuzz",
        arguments: "[TARGET] [--minutes N]",
        about: "looks for inputs that the readers of DNS do not pass, guided by what they reach",
        run: fuzz::fuzz,
    },
    Command {
        name: "bench",
        arguments: "[NAME …]",
        about: "the benchmarks of bench/README.md, or the named ones",
        run: tests::bench,
    },
    Command {
        name: "build",
        arguments: "[--release]",
        about: "all programs, side by side in target/flatnet/",
        run: build::build,
    },
    Command {
        name: "kubectl",
        arguments: "",
        about: "Debian's kubectl 1.20, unpacked into target/tools/",
        run: tools::kubectl,
    },
    Command {
        name: "runtimes",
        arguments: "",
        about: "Debian's podman and containerd, unpacked into target/tools/",
        run: tools::runtimes,
    },
    Command {
        name: "clients",
        arguments: "",
        about: "all programs and manifests of others that the tests use, into target/tools/",
        run: tools::clients,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let Some((name, rest)) = arguments.split_first() else {
        print!("{}", usage());
        return Ok(());
    };
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        print!("{}", usage());
        return Ok(());
    }
    std::env::set_current_dir(process::root())?;
    match COMMANDS.iter().find(|command| command.name == name) {
        Some(command) => (command.run)(rest),
        None => bail!("there is no command {name:?}\n\n{}", usage()),
    }
}

fn usage() -> String {
    let mut text = String::from("Developer commands:\n");
    for command in COMMANDS {
        let call = format!("{} {}", command.name, command.arguments);
        text.push_str(&format!("  {call:<18} {}\n", command.about));
    }
    text
}
