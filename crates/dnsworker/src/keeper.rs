#![allow(unsafe_code)] // `fork`: see SAFETY below.
//! A process that keeps the worker's sockets, where its starter does not: on a real node a
//! container that ends is away for a second and more, and questions in its sockets are gone.
//!
//! ```text
//! keeper ─▶ worker    no rights are left in either; what was opened before is shared
//!    ▲        │ ends
//!    └────────┘ the next one is there within milliseconds
//! ```

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getppid};

/// A worker that lived this long is followed at once.
const STABLE: Duration = Duration::from_secs(1);
/// After a quick death the next one waits this long, and twice as long after each further one.
const BACK_OFF_FIRST: Duration = Duration::from_millis(100);
/// No wait is longer.
const BACK_OFF_LIMIT: Duration = Duration::from_secs(10);

/// Who comes back from [`keep`].
pub(crate) enum Kept {
    /// A worker, in a process of its own.
    Worker,
    /// The keeper, which was told to end; its worker has ended.
    Ended,
}

/// Starts workers, one after another, until this process is told to end.
///
/// # Errors
/// When the machine gives no process.
pub(crate) fn keep() -> Result<Kept> {
    let mut watched = ending_signals();
    watched.add(Signal::SIGCHLD);
    watched.thread_block()?;
    let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mut back_off = Duration::ZERO;
    loop {
        let keeper = Pid::this();
        // SAFETY: this process has one thread yet, so the child may do whatever it could.
        match unsafe { fork() }.context("starting the DNS worker")? {
            ForkResult::Child => {
                set_pdeathsig(Signal::SIGTERM)?;
                watched.thread_unblock()?;
                // It may have died before it was watched.
                return Ok(if getppid() == keeper { Kept::Worker } else { Kept::Ended });
            }
            ForkResult::Parent { child } => {
                let started = Instant::now();
                if wait_for(&signals, child)? {
                    return Ok(Kept::Ended);
                }
                back_off = match started.elapsed() >= STABLE {
                    true => Duration::ZERO,
                    false if back_off.is_zero() => BACK_OFF_FIRST,
                    false => (back_off * 2).min(BACK_OFF_LIMIT),
                };
                if is_told_to_end(&signals, back_off)? {
                    return Ok(Kept::Ended);
                }
            }
        }
    }
}

/// The signals that ask a worker for its end, from now on as something to read.
pub(crate) struct Ending(SignalFd);

impl Ending {
    /// Blocks them in this thread and those that it starts.
    pub(crate) fn watch() -> Result<Self> {
        let signals = ending_signals();
        signals.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self(SignalFd::with_flags(&signals, flags)?))
    }

    /// Whether one came.
    pub(crate) fn is_asked_for(&self) -> Result<bool> {
        Ok(self.0.read_signal()?.is_some())
    }
}

impl AsFd for Ending {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn ending_signals() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals
}

/// Waits until the worker has ended; whether that was asked for.
fn wait_for(signals: &SignalFd, worker: Pid) -> Result<bool> {
    let mut is_ending = false;
    loop {
        while let Some(signal) = signals.read_signal()? {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                is_ending = true;
                let _ = kill(worker, Signal::SIGTERM);
            }
        }
        match waitpid(worker, Some(WaitPidFlag::WNOHANG)).context("waiting for the DNS worker")? {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) if is_ending => return Ok(true),
            WaitStatus::Exited(_, code) => {
                tracing::error!("the DNS worker ended with exit code {code} and is started again");
                return Ok(false);
            }
            WaitStatus::Signaled(_, signal, _) => {
                tracing::error!("the DNS worker was killed by {signal} and is started again");
                return Ok(false);
            }
            _ => {}
        }
        wait(signals, PollTimeout::NONE)?;
    }
}

/// Waits for a time; whether an end was asked for meanwhile.
fn is_told_to_end(signals: &SignalFd, time: Duration) -> Result<bool> {
    let deadline = Instant::now() + time;
    loop {
        while let Some(signal) = signals.read_signal()? {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                return Ok(true);
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        wait(signals, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
    }
}

fn wait(signals: &SignalFd, timeout: PollTimeout) -> Result<()> {
    match poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(error) => Err(error).context("waiting for signals"),
    }
}
