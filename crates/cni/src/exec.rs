//! Running a plugin's program: an IPAM delegate's, or one of a list. CNI specification, section 2.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fault::{DELEGATE_FAILED, Fault, INVALID_CONFIG};

/// How often a program that has closed its output is looked for, milliseconds.
const EXIT_POLL_MS: u64 = 1;
/// Bytes that are read of a program's answer at most.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// Bytes that are kept of what it says on standard error.
const WORDS_BYTES_MAX: u64 = 16 << 10;

/// A program to run.
pub(crate) struct Call<'a> {
    /// Its name: the `type` of its configuration.
    pub(crate) plugin: &'a str,
    /// Directories to look for it, in order.
    pub(crate) path: &'a [PathBuf],
    /// Variables beside those that are inherited.
    pub(crate) environment: &'a [(&'a str, OsString)],
    /// Whether it inherits ours.
    pub(crate) inherits: bool,
    /// Its standard input.
    pub(crate) input: &'a Value,
    /// Whether its standard error is ours; else it goes into the fault.
    pub(crate) words_pass: bool,
    /// Longest run, seconds; then it is killed.
    pub(crate) timeout_s: u64,
}

impl Call<'_> {
    /// Runs the program and answers its document; null when it wrote none.
    ///
    /// # Errors
    /// The program's own fault; code 7 when there is no such program; code 107 when it cannot be
    /// run, does not end, or writes something else than one JSON document.
    pub(crate) fn run(&self) -> Result<Value, Fault> {
        let program = find(self.plugin, self.path)?;
        let failed = |problem: &dyn std::fmt::Display| {
            let message = format!("the plugin {} failed", program.display());
            Fault::new(DELEGATE_FAILED, message, problem)
        };
        let ended = self.execute(&program).map_err(|error| failed(&error))?;
        let text = String::from_utf8_lossy(&ended.answer);
        let words = String::from_utf8_lossy(&ended.words);
        if !ended.status.success() {
            return Err(fault_of(&text).unwrap_or_else(|| {
                let said = if words.trim().is_empty() { &text } else { &words };
                failed(&format!("{}: {}", ended.status, said.trim()))
            }));
        }
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text)
            .map_err(|error| failed(&format!("its answer is not one JSON document: {error}")))
    }

    fn execute(&self, program: &Path) -> io::Result<Ended> {
        let mut command = Command::new(program);
        if !self.inherits {
            command.env_clear();
        }
        let words = if self.words_pass { Stdio::inherit() } else { Stdio::piped() };
        let mut child = command
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(words)
            .spawn()?;
        let deadline = Instant::now() + Duration::from_secs(self.timeout_s);
        exchange(&mut child, self.input.to_string().into_bytes(), deadline).map_err(|error| {
            // It must not go on changing what the caller is about to clean up.
            let _ = child.kill();
            let _ = child.wait();
            match error.kind() {
                io::ErrorKind::TimedOut => {
                    let limit_s = self.timeout_s;
                    io::Error::other(format!("it did not end within {limit_s} s and was killed"))
                }
                _ => error,
            }
        })
    }
}

struct Ended {
    status: ExitStatus,
    answer: Vec<u8>,
    words: Vec<u8>,
}

/// Writes, reads and waits, each bounded, so that no program can hold us up by what it does or
/// does not do with its streams.
fn exchange(child: &mut Child, input: Vec<u8>, deadline: Instant) -> io::Result<Ended> {
    if let Some(mut stdin) = child.stdin.take() {
        // A program that fails early closes its input: its answer says why.
        std::thread::spawn(move || stdin.write_all(&input));
    }
    let answer = child.stdout.take().map(|stdout| read_in_background(stdout, ANSWER_BYTES_MAX));
    let words: Option<ChildStderr> = child.stderr.take();
    let words = words.map(|stderr| read_in_background(stderr, WORDS_BYTES_MAX));
    let answer = received(answer, deadline)?;
    let words = received(words, deadline)?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Ended { status, answer, words });
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(EXIT_POLL_MS));
    }
}

fn read_in_background(
    mut stream: impl Read + Send + 'static,
    bytes_max: u64,
) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = stream.by_ref().take(bytes_max).read_to_end(&mut bytes);
        // What is more is read and forgotten: a full pipe would stop the program.
        let read = read.and_then(|_| io::copy(&mut stream, &mut io::sink()));
        sender.send(read.map(|_| bytes))
    });
    receiver
}

fn received(
    stream: Option<Receiver<io::Result<Vec<u8>>>>,
    deadline: Instant,
) -> io::Result<Vec<u8>> {
    let Some(stream) = stream else { return Ok(vec![]) };
    let left = deadline.saturating_duration_since(Instant::now());
    stream.recv_timeout(left).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// The program of a plugin, which must be a plain file name: a path would lead out of the
/// directories that the administrator chose.
fn find(plugin: &str, path: &[PathBuf]) -> Result<PathBuf, Fault> {
    let mut parts = Path::new(plugin).components();
    let is_plain = matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(name)), None) if name == plugin
    );
    if !is_plain {
        let message = format!("invalid plugin type {plugin:?}");
        let details = "it is the name of a program, without a directory";
        return Err(Fault::new(INVALID_CONFIG, message, details));
    }
    let found = path.iter().map(|directory| directory.join(plugin)).find(|file| file.is_file());
    if let Some(file) = &found
        && file.metadata().is_ok_and(|metadata| metadata.mode() & 0o002 != 0)
    {
        let file = file.display();
        return Err(Fault::new(
            INVALID_CONFIG,
            format!("the program {file} can be written by everybody"),
            format!("look for who changed it, then: chmod o-w {file}"),
        ));
    }
    found.ok_or_else(|| {
        let path: Vec<String> = path.iter().map(|one| one.display().to_string()).collect();
        Fault::new(
            INVALID_CONFIG,
            format!("failed to find plugin {plugin:?} in path [{}]", path.join(" ")),
            "install it there, or name another one",
        )
    })
}

fn fault_of(text: &str) -> Option<Fault> {
    let value: Value = serde_json::from_str(text).ok()?;
    let code = u32::try_from(value.get("code")?.as_u64()?).ok()?;
    let part = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    Some(Fault::new(code, part("msg"), part("details")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Runs a script as the plugin `p`.
    fn run(name: &str, script: &str) -> Result<Value, Fault> {
        run_with_mode(name, script, 0o755)
    }

    fn run_with_mode(name: &str, script: &str, mode: u32) -> Result<Value, Fault> {
        let directory =
            std::env::temp_dir().join(format!("flatnet-exec-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let file = directory.join("p");
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("a script");
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&file, mode).expect("executable");
        let answer = Call {
            plugin: "p",
            path: &["/nowhere".into(), directory.clone()],
            environment: &[("CNI_COMMAND", "ADD".into())],
            inherits: true,
            input: &serde_json::json!({ "name": "net" }),
            words_pass: false,
            timeout_s: if name == "hangs" { 1 } else { 20 },
        }
        .run();
        std::fs::remove_dir_all(directory).expect("removed");
        answer
    }

    #[test]
    fn answers_and_faults_of_programs_come_back_whole() {
        let echo =
            run("echo", "read line; echo \"{\\\"c\\\":\\\"$CNI_COMMAND\\\",\\\"i\\\":$line}\"");
        assert_eq!(echo, Ok(serde_json::json!({ "c": "ADD", "i": { "name": "net" } })));
        assert_eq!(run("silent", "cat >/dev/null"), Ok(Value::Null));
        assert_eq!(run("deaf", "exec <&-; echo 1"), Ok(serde_json::json!(1)));
        let own = run("own", r#"echo '{"code":11,"msg":"later","details":"soon"}'; exit 1"#);
        assert_eq!(own, Err(Fault::new(11, "later", "soon")));
        let rows = [
            ("words", "echo broken >&2; exit 3", "exit status: 3: broken"),
            ("text", "echo broken", "not one JSON document"),
            ("signal", "kill -9 $$", "signal: 9"),
            ("hangs", "exec sleep 100", "within 1 s"),
        ];
        for (name, script, expected) in rows {
            let fault = run(name, script).expect_err(name);
            assert_eq!(fault.code, DELEGATE_FAILED);
            assert!(fault.details.contains(expected), "{fault} should say {expected}");
        }
    }

    /// X-29: what everybody can write is not run as root.
    #[test]
    fn programs_that_everybody_can_write_are_not_run() {
        assert_eq!(run_with_mode("private", "echo 1", 0o755), Ok(serde_json::json!(1)));
        let fault = run_with_mode("shared", "echo 1", 0o757).expect_err("refused");
        assert_eq!(fault.code, INVALID_CONFIG);
    }

    /// CNI-13, X-29: programs come from the directories of `CNI_PATH` and from nowhere else.
    #[test]
    fn programs_are_plain_names() {
        let path = [PathBuf::from("/usr/lib"), PathBuf::from("/bin")];
        assert_eq!(find("sh", &path), Ok("/bin/sh".into()));
        for wrong in ["", ".", "..", "/bin/sh", "../bin/sh", "sh/", "./sh", "not-there"] {
            assert_eq!(
                find(wrong, &path).map_err(|fault| fault.code),
                Err(INVALID_CONFIG),
                "{wrong}"
            );
        }
    }
}
