//! Small commands: what a shell's tools would do in an image that has no shell.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;

use crate::arguments::Arguments;
use crate::{CommandResult, Outcome};

/// How often `cat --follow` looks for more.
const FOLLOW_POLL: Duration = Duration::from_millis(100);

/// `sleep SECONDS|infinity`.
pub(crate) fn sleep(arguments: &Arguments) -> CommandResult {
    let text = arguments.word(0, "the number of seconds, or infinity,")?;
    if text == "infinity" {
        loop {
            std::thread::park();
        }
    }
    let seconds: f64 = arguments.parse("the time", text)?;
    let time = Duration::try_from_secs_f64(seconds);
    std::thread::sleep(time.map_err(|error| arguments.misuse(format!("{text}: {error}")))?);
    Ok(Outcome::Success)
}

/// `cat FILE... [--follow]`.
pub(crate) fn cat(arguments: &Arguments) -> CommandResult {
    arguments.word(0, "FILE")?;
    let follow = arguments.has("--follow");
    let mut files = Vec::new();
    for path in arguments.words() {
        files.push((path, open(path, follow)?));
    }
    let mut buffer = vec![0; 64 << 10];
    loop {
        for (path, file) in &mut files {
            loop {
                match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => print_bytes(buffer.get(..count).unwrap_or_default())?,
                    Err(error) => return Err(format!("reading {path}: {error}")),
                }
            }
        }
        if !follow {
            return Ok(Outcome::Success);
        }
        std::thread::sleep(FOLLOW_POLL);
    }
}

/// The other container of a pod may not have made the file yet.
fn open(path: &str, wait: bool) -> Result<File, String> {
    loop {
        match File::open(path) {
            Err(error) if wait && error.kind() == std::io::ErrorKind::NotFound => {
                std::thread::sleep(FOLLOW_POLL);
            }
            opened => return opened.map_err(|error| format!("opening {path}: {error}")),
        }
    }
}

/// `write FILE TEXT [--every-ms MS]`: appends a line, once or again and again.
pub(crate) fn write(arguments: &Arguments) -> CommandResult {
    let (path, text) = (arguments.word(0, "FILE")?, arguments.word(1, "TEXT")?);
    let every_ms: Option<u64> = arguments.parsed("--every-ms")?;
    let fault = |error: std::io::Error| format!("writing {path}: {error}");
    let mut file = OpenOptions::new().append(true).create(true).open(path).map_err(fault)?;
    let mut count: u64 = 0;
    loop {
        match every_ms {
            None => {
                file.write_all(format!("{text}\n").as_bytes()).map_err(fault)?;
                return Ok(Outcome::Success);
            }
            Some(every_ms) => {
                count += 1;
                file.write_all(format!("{text} {count}\n").as_bytes()).map_err(fault)?;
                std::thread::sleep(Duration::from_millis(every_ms));
            }
        }
    }
}

/// `env`.
pub(crate) fn env(_: &Arguments) -> CommandResult {
    for (name, value) in std::env::vars_os() {
        print_bytes(&[name.as_bytes(), b"=", value.as_bytes(), b"\n"].concat())?;
    }
    Ok(Outcome::Success)
}

/// `hostname`.
pub(crate) fn hostname(_: &Arguments) -> CommandResult {
    let name = nix::unistd::gethostname().map_err(|error| error.to_string())?;
    print_bytes(&[name.as_bytes(), b"\n"].concat())?;
    Ok(Outcome::Success)
}

/// `ip`: one line for each address.
pub(crate) fn ip(_: &Arguments) -> CommandResult {
    let addresses = getifaddrs().map_err(|error| format!("reading addresses: {error}"))?;
    for one in addresses {
        let (Some(address), Some(mask)) = (one.address, one.netmask) else { continue };
        let line = if let (Some(ip), Some(mask)) = (address.as_sockaddr_in(), mask.as_sockaddr_in())
        {
            format!("{} {}/{}\n", one.interface_name, ip.ip(), u32::from(mask.ip()).count_ones())
        } else if let (Some(ip), Some(mask)) = (address.as_sockaddr_in6(), mask.as_sockaddr_in6()) {
            format!("{} {}/{}\n", one.interface_name, ip.ip(), u128::from(mask.ip()).count_ones())
        } else {
            continue;
        };
        print_bytes(line.as_bytes())?;
    }
    Ok(Outcome::Success)
}

/// `exit CODE`.
pub(crate) fn exit(arguments: &Arguments) -> CommandResult {
    let code = arguments.parse("the code", arguments.word(0, "CODE")?)?;
    Ok(Outcome::Code(code))
}

/// `crash-after MS`: ends by SIGABRT, as a fault in a program would.
pub(crate) fn crash_after(arguments: &Arguments) -> CommandResult {
    let after_ms = arguments.parse("the time", arguments.word(0, "MS")?)?;
    std::thread::sleep(Duration::from_millis(after_ms));
    eprintln!("crashing, as told");
    std::process::abort();
}

/// Prints, and ends quietly when nobody reads any more.
fn print_bytes(bytes: &[u8]) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|error| format!("writing the output: {error}"))
}
