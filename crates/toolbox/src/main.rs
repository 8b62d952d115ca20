//! The one program of the toolbox image: servers, clients and a load generator, in one static
//! binary that runs alone in an empty root file system.
//!
//! It has its own resolver, since the C library's cannot be linked statically, and needs nothing
//! but `/etc/resolv.conf` and, where there is one, `/etc/hosts`.

mod arguments;
mod dns_commands;
mod http;
mod load;
mod proxy;
mod requests;
mod resolver;
mod serve;
mod server;
mod signals;
mod small;
mod summary;
mod udp;
mod udp_flow;

use std::process::ExitCode;

use arguments::Arguments;

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All went well.
    Success,
    /// The command ran, and what it tried failed; it has said so.
    Failed,
    /// The process shall end with this code.
    Code(u8),
}

/// Why a command did not run, or stopped: text for the person who called it.
pub(crate) type CommandResult = Result<Outcome, String>;

struct Command {
    name: &'static str,
    usage: &'static str,
    /// Options that take a value.
    valued: &'static [&'static str],
    /// Options that take none.
    switches: &'static [&'static str],
    run: fn(&Arguments) -> CommandResult,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "serve",
        usage: "serve [--http PORT]... [--udp PORT]... [--tcp PORT]... [--drain-ms MS]",
        valued: &["--http", "--udp", "--tcp", "--drain-ms"],
        switches: &[],
        run: serve::run,
    },
    Command {
        name: "http",
        usage: "http URL [--count N] [--concurrency C] [--interval-ms MS] [--timeout-ms MS] \
                [--expect-codes 200,204] [--post-bytes N] [--json]",
        valued: &[
            "--count",
            "--concurrency",
            "--interval-ms",
            "--timeout-ms",
            "--expect-codes",
            "--post-bytes",
        ],
        switches: &["--json"],
        run: requests::run,
    },
    Command {
        name: "load",
        usage: "load URL --duration-s S [--concurrency C] [--rate R] [--timeout-ms MS] \
                [--expect-codes 200] [--keep-alive]",
        valued: &["--duration-s", "--concurrency", "--rate", "--timeout-ms", "--expect-codes"],
        switches: &["--keep-alive"],
        run: load::run,
    },
    Command {
        name: "udp",
        usage: "udp HOST PORT [--payload-bytes N] [--timeout-ms MS] \
                [--count N | --rate R --duration-s S]",
        valued: &["--payload-bytes", "--count", "--timeout-ms", "--rate", "--duration-s"],
        switches: &[],
        run: udp::run,
    },
    Command {
        name: "dns",
        usage: "dns NAME [TYPE] [--server IP[:PORT]] [--tcp]",
        valued: &["--server"],
        switches: &["--tcp"],
        run: dns_commands::dns,
    },
    Command {
        name: "nslookup",
        usage: "nslookup NAME [SERVER]",
        valued: &[],
        switches: &[],
        run: dns_commands::nslookup,
    },
    Command {
        name: "proxy",
        usage: "proxy --listen PORT --to HOST:PORT [--drain-ms MS]",
        valued: &["--listen", "--to", "--drain-ms"],
        switches: &[],
        run: proxy::run,
    },
    Command {
        name: "sleep",
        usage: "sleep SECONDS|infinity",
        valued: &[],
        switches: &[],
        run: small::sleep,
    },
    Command {
        name: "cat",
        usage: "cat FILE... [--follow]",
        valued: &[],
        switches: &["--follow"],
        run: small::cat,
    },
    Command {
        name: "write",
        usage: "write FILE TEXT [--every-ms MS]",
        valued: &["--every-ms"],
        switches: &[],
        run: small::write,
    },
    Command { name: "env", usage: "env", valued: &[], switches: &[], run: small::env },
    Command {
        name: "hostname",
        usage: "hostname",
        valued: &[],
        switches: &[],
        run: small::hostname,
    },
    Command { name: "ip", usage: "ip", valued: &[], switches: &[], run: small::ip },
    Command { name: "exit", usage: "exit CODE", valued: &[], switches: &[], run: small::exit },
    Command {
        name: "crash-after",
        usage: "crash-after MS",
        valued: &[],
        switches: &[],
        run: small::crash_after,
    },
];

const EXAMPLES: &str = "\
Examples:
  flatnet-toolbox serve --http 8080 --udp 9000
  flatnet-toolbox http http://web/ --count 100 --json
  flatnet-toolbox load http://web/ --duration-s 30 --concurrency 4 --keep-alive
  flatnet-toolbox udp web 9000 --payload-bytes 3000
  flatnet-toolbox dns _http._tcp.web.shop.svc.cluster.local SRV
  flatnet-toolbox nslookup web

Exit codes: 0 all went well; 1 a request failed or a name is not there; 2 wrong usage.
Servers answer on for --drain-ms (3000) after SIGTERM and then exit with 0; every other
command ends at SIGTERM with 143.
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = words.split_first() else {
        eprint!("{}", help());
        return ExitCode::from(2);
    };
    if matches!(name.as_str(), "--help" | "-h" | "help") {
        print!("{}", help());
        return ExitCode::SUCCESS;
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        eprintln!("flatnet-toolbox: there is no command {name:?}; --help lists them");
        return ExitCode::from(2);
    };
    if rest.iter().any(|word| word == "--help" || word == "-h") {
        println!("Usage: flatnet-toolbox {}\n\n{EXAMPLES}", command.usage);
        return ExitCode::SUCCESS;
    }
    signals::end_at_sigterm();
    let arguments = match Arguments::read(rest, command.valued, command.switches) {
        Ok(arguments) => arguments,
        Err(fault) => {
            eprintln!("flatnet-toolbox {name}: {fault}\nUsage: flatnet-toolbox {}", command.usage);
            return ExitCode::from(2);
        }
    };
    match (command.run)(&arguments) {
        Ok(Outcome::Success) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(1),
        Ok(Outcome::Code(code)) => ExitCode::from(code),
        Err(fault) => {
            eprintln!("flatnet-toolbox {name}: {fault}");
            // Faults in how the command was called are known before anything was tried.
            ExitCode::from(if arguments.is_misused() { 2 } else { 1 })
        }
    }
}

fn help() -> String {
    let mut text = String::from("Usage: flatnet-toolbox COMMAND\n\nCommands:\n");
    for command in COMMANDS {
        text.push_str(&format!("  {}\n", command.usage));
    }
    text.push('\n');
    text.push_str(EXAMPLES);
    text
}
