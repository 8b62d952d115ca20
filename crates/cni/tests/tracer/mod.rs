//! Runs a program under ptrace(2), system call by system call, and stops it at any of them for
//! ever. Linux for common hardware; needs no symbol or flag in the program.
#![allow(dead_code)] // each test program uses its part
#![allow(unsafe_code)] // between fork and exec, and unions of the kernel

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdout, Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Stops of one program that are waited for; a run of the plugin has a few thousand.
const STOPS_MAX: usize = 1_000_000;

/// A system call, as it begins.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The thread.
    pub thread: Pid,
    pub number: i64,
    pub arguments: [u64; 6],
}

/// How a run ended.
#[derive(Debug)]
pub struct Run {
    /// System calls that were begun.
    pub calls: usize,
    /// The number of the call that the program was killed in front of.
    pub killed_at: Option<i64>,
    /// Whether it ended by itself, with exit code 0.
    pub success: bool,
    pub output: String,
}

/// Runs a program and its children to their end, or kills them in front of system call `stop_at`
/// (counted from 1), so that this call has no effect any more. `observe` sees every call that succeeded, with what it
/// returned, while the thread stands still behind it.
///
/// The calling thread must stay the same throughout: it alone may trace the program.
#[allow(clippy::zombie_processes)] // reaped below, by number
pub fn run(
    command: &mut Command,
    input: &str,
    stop_at: Option<usize>,
    mut observe: impl FnMut(&Call, i64),
) -> Run {
    let traced = || ptrace::traceme().map_err(std::io::Error::from);
    // SAFETY: between fork and exec only ptrace(2) is called, which is async-signal-safe.
    unsafe { command.pre_exec(traced) };
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let pid = Pid::from_raw(child.id() as i32);
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    let first = waitpid(pid, Some(flags)).expect("it stops at its first instruction");
    assert!(matches!(first, WaitStatus::Stopped(_, Signal::SIGTRAP)), "{first:?}");
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(pid, options).expect("options");
    let mut stdin = child.stdin.take().expect("its input");
    stdin.write_all(input.as_bytes()).expect("it fits into the pipe");
    drop(stdin);
    ptrace::syscall(pid, None).expect("on");

    let mut under_way: BTreeMap<Pid, Call> = BTreeMap::new();
    let mut run = Run { calls: 0, killed_at: None, success: false, output: String::new() };
    for _ in 0..STOPS_MAX {
        let status = match waitpid(None, Some(flags)) {
            Err(Errno::ECHILD) => {
                run.output = read_all(child.stdout.take().expect("its output"));
                return run;
            }
            status => status.expect("a stop or an end"),
        };
        if let WaitStatus::Exited(thread, code) = status {
            run.success |= thread == pid && code == 0;
        }
        let Some(thread) = status.pid().filter(|_| is_stop(&status)) else { continue };
        if let WaitStatus::PtraceSyscall(_) = status {
            match under_way.remove(&thread) {
                Some(call) => returned(thread).into_iter().for_each(|value| observe(&call, value)),
                None if run.killed_at.is_none() => {
                    let call = begun(thread);
                    run.calls += 1;
                    under_way.insert(thread, call);
                    run.killed_at = Some(call.number).filter(|_| stop_at == Some(run.calls));
                }
                None => {}
            }
        }
        if run.killed_at.is_some() {
            // Its children too, as when a service manager ends all of a service.
            for process in [pid, thread] {
                let _ = kill(process, Signal::SIGKILL);
            }
            continue;
        }
        // A new thread or process begins with a SIGSTOP that nobody sent.
        let signal = match status {
            WaitStatus::Stopped(_, Signal::SIGSTOP | Signal::SIGTRAP) => None,
            WaitStatus::Stopped(_, signal) => Some(signal),
            _ => None,
        };
        // Gone meanwhile: its end comes by waitpid.
        let _ = ptrace::syscall(thread, signal);
    }
    panic!("the program has not ended after {STOPS_MAX} stops");
}

fn is_stop(status: &WaitStatus) -> bool {
    matches!(
        status,
        WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..) | WaitStatus::PtraceSyscall(_)
    )
}

/// The bytes at an address of a thread that stands still.
pub fn memory(thread: Pid, address: u64, length: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(format!("/proc/{thread}/mem")).expect("its memory");
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, address).expect("mapped");
    bytes
}

/// The text that ends with a zero byte at an address of a thread that stands still.
pub fn text(thread: Pid, address: u64) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < libc::PATH_MAX as usize {
        match memory(thread, address + bytes.len() as u64, 1)[0] {
            0 => break,
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).expect("text")
}

fn begun(thread: Pid) -> Call {
    let info = ptrace::syscall_info(thread).expect("a stopped thread");
    assert_eq!(info.op, libc::PTRACE_SYSCALL_INFO_ENTRY, "the beginning of a call");
    // SAFETY: the kernel filled the part of the union that `op` names.
    let entry = unsafe { info.u.entry };
    Call { thread, number: entry.nr as i64, arguments: entry.args }
}

/// What a call returned; `None` for an error.
fn returned(thread: Pid) -> Option<i64> {
    let info = ptrace::syscall_info(thread).ok()?;
    if info.op != libc::PTRACE_SYSCALL_INFO_EXIT {
        return None;
    }
    // SAFETY: the kernel filled the part of the union that `op` names.
    let exit = unsafe { info.u.exit };
    (exit.is_error == 0).then_some(exit.sval)
}

fn read_all(mut output: ChildStdout) -> String {
    let mut text = String::new();
    output.read_to_string(&mut text).expect("text");
    text
}
