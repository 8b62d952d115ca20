//! Signals. In a container the program is often process 1, for which the kernel has no default
//! actions: without a handler it would only go after the grace period, by SIGKILL.
#![allow(unsafe_code)]

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Makes SIGTERM and SIGINT end the process at once, with the code that shells expect.
pub(crate) fn end_at_sigterm() {
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: the handler calls only _exit, which is safe within a signal handler.
        let _ = unsafe { sigaction(signal, &action) };
    }
}

/// Holds SIGTERM and SIGINT back from this thread and those that it starts from now on, so that
/// one thread can wait for them.
pub(crate) fn hold_back() -> Result<SigSet, String> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().map_err(|error| format!("blocking signals: {error}"))?;
    Ok(signals)
}

extern "C" fn end(signal: libc::c_int) {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(128 + signal) }
}
