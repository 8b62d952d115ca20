//! `kubectl exec`: a command in a container, its streams carried to a client.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use pause::ExecSpec;
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::channels::{Channel, Incoming, Output, Session, Wanted};
use super::pipes::{self, Ends, Input};
use super::terminal::{self, Sizes};
use super::{ContainerPlace, IDLE_TIMEOUT_S, QUEUE, failure_status, success_status};
use crate::pause_client;

/// Longest wait for output after the command has ended, milliseconds: what it left running in the
/// background may hold its output open for ever.
const REST_OF_OUTPUT_MS: u64 = 500;

/// What to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOptions {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// What it is connected to. With a terminal, standard error is part of that.
    pub streams: Wanted,
}

/// Runs the command of a session, to the end of both.
pub async fn serve(mut session: Session, options: ExecOptions, target: ContainerPlace) {
    let status = match run(&mut session, &options, &target).await {
        Ok(code) => exit_status(code, &options.command),
        Err(message) => {
            tracing::debug!("exec in {}: {message}", target.container);
            failure_status("error executing command in container", &message)
        }
    };
    session.finish(&status.to_string()).await;
}

/// The terminal's controlling side.
type Controller = Arc<AsyncFd<OwnedFd>>;

async fn run(
    session: &mut Session,
    options: &ExecOptions,
    target: &ContainerPlace,
) -> Result<i32, String> {
    let (mut ends, terminal) = if options.streams.tty {
        let (ends, controller) = terminal_ends(options, target, &session.output).await?;
        (ends, Some(controller))
    } else {
        (pipes::ends(options.streams.stdin, &session.output)?, None)
    };
    let spec = ExecSpec {
        container: target.container.clone(),
        arguments: options.command.clone(),
        terminal: options.streams.tty,
        kill_on_close: true,
    };
    let mut running = pause_client::execute(&target.socket, &spec, ends.given()).await?;
    // From here on only the command holds its ends: their close is its end.
    drop(ends.given);
    let idle = Duration::from_secs(IDLE_TIMEOUT_S);
    let code = tokio::select! {
        code = running.exit_code() => Ok(code),
        // A client that left wants nothing more: the command is killed with its connection.
        () = carry_incoming(&mut session.incoming, ends.input.take(), terminal.as_deref()) => {
            Err("the client left".to_owned())
        }
        () = session.activity.ceased_for(idle) => {
            Err(format!("nothing was said for {IDLE_TIMEOUT_S} s"))
        }
    };
    if code.is_ok() {
        let rest = Duration::from_millis(REST_OF_OUTPUT_MS);
        let _ = tokio::time::timeout(rest, async {
            for output in &mut ends.outputs {
                let _ = output.await;
            }
        })
        .await;
    }
    for output in &ends.outputs {
        output.abort();
    }
    code?.ok_or_else(|| format!("container {} ended", target.container))
}

/// Returns when the client has left.
async fn carry_incoming(
    incoming: &mut mpsc::Receiver<Incoming>,
    mut input: Option<Input>,
    terminal: Option<&AsyncFd<OwnedFd>>,
) {
    let mut sizes = Sizes::default();
    while let Some(incoming) = incoming.recv().await {
        match incoming {
            Incoming::Data(Channel::Stdin, bytes) => {
                if let Some(open) = &input
                    && open.queue.send(bytes).await.is_err()
                {
                    input = None; // The command reads no more.
                }
            }
            Incoming::End(Channel::Stdin) => input = None,
            Incoming::Data(Channel::Resize, bytes) => {
                if let (Some(size), Some(terminal)) = (sizes.newest(&bytes), terminal) {
                    terminal::resize(terminal, size);
                }
            }
            Incoming::Data(..) | Incoming::End(_) => {}
        }
    }
}

/// The last word on the error stream: the client takes its own exit code from it.
fn exit_status(code: i32, command: &[String]) -> Value {
    if code == 0 {
        return success_status();
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!(
            "command terminated with non-zero exit code: error executing command {command:?}, \
             exit code {code}"
        ),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

/// A terminal of the container's own devpts: `tty` in the container names it right. Its path is
/// found through a process of the container, which the node's /proc shows.
async fn terminal_ends(
    options: &ExecOptions,
    target: &ContainerPlace,
    to_client: &Output,
) -> Result<(Ends, Controller), String> {
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |error: std::io::Error| format!("cannot open a terminal: {error}");
    let (reports, _) = pause_client::watch(&target.socket).await?;
    let pid = reports
        .iter()
        .find(|report| report.name == target.container && report.exit.is_none())
        .map(|report| report.pid)
        .ok_or_else(|| format!("container {} is not running", target.container))?;
    let controller: OwnedFd = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(format!("/proc/{pid}/root/dev/pts/ptmx"))
        .map_err(failed)?
        .into();
    let terminal = pause::terminal::peer(controller.as_fd()).map_err(failed)?;
    let copy = || terminal.try_clone().map_err(failed);
    let given = [copy()?, copy()?, copy()?];
    let controller = Arc::new(
        crate::sys::asynchronous(controller, Interest::READABLE | Interest::WRITABLE)
            .map_err(failed)?,
    );
    let mut outputs = Vec::new();
    if to_client.has(Channel::Stdout) {
        outputs.push(tokio::spawn(terminal::carry_output(controller.clone(), to_client.clone())));
    }
    let input = options.streams.stdin.then(|| {
        let (queue, pieces) = mpsc::channel(QUEUE);
        Input { queue, task: tokio::spawn(terminal::type_input(controller.clone(), pieces)) }
    });
    Ok((Ends { input, outputs, given }, controller))
}
