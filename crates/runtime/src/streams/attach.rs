//! `kubectl attach`, and `kubectl run -i`: a client at the streams of a container's first process.
//! The pause process holds these, so that containers do not notice a runtime that is killed; the
//! session ends with it, and the client may attach again.

use std::time::Duration;

use tokio::sync::mpsc;

use super::channels::{Channel, Incoming, Session, Wanted};
use super::pipes::{self, Input};
use super::terminal::Sizes;
use super::{ContainerPlace, IDLE_TIMEOUT_S, failure_status, success_status};
use crate::pause_client::{self, Control};

/// What a client attaches to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// What the client sends and wants.
    pub streams: Wanted,
    /// Whether the container's input ends with this client's. Where it goes on, the end of its input
    /// is all that a client can say, and ends the session, as containerd has it.
    pub input_ends: bool,
}

/// Serves a session, to its end or the container's.
pub async fn serve(mut session: Session, options: AttachOptions, target: ContainerPlace) {
    let status = match run(&mut session, options, &target).await {
        Ok(()) => success_status(),
        Err(message) => {
            tracing::debug!("attached to {}: {message}", target.container);
            failure_status("error attaching to container", &message)
        }
    };
    session.finish(&status.to_string()).await;
}

async fn run(
    session: &mut Session,
    options: AttachOptions,
    target: &ContainerPlace,
) -> Result<(), String> {
    let mut ends = pipes::ends(options.streams.stdin, &session.output)?;
    let attached = pause_client::attach(&target.socket, &target.container, ends.given()).await?;
    drop(ends.given);
    let (mut running, mut control) = attached;
    let ended = async {
        running.exit_code().await;
        for output in &mut ends.outputs {
            let _ = output.await;
        }
    };
    let input = ends.input.take();
    let result = tokio::select! {
        () = ended => Ok(()),
        () = carry_incoming(&mut session.incoming, input, &mut control, options) => Ok(()),
        () = session.activity.ceased_for(Duration::from_secs(IDLE_TIMEOUT_S)) => {
            Err(format!("nothing was said for {IDLE_TIMEOUT_S} s"))
        }
    };
    if options.streams.stdin && options.input_ends {
        control.end_input().await;
    }
    for output in &ends.outputs {
        output.abort();
    }
    result
}

/// Returns when the client has left, or can say nothing more.
async fn carry_incoming(
    incoming: &mut mpsc::Receiver<Incoming>,
    mut input: Option<Input>,
    control: &mut Control,
    options: AttachOptions,
) {
    let mut sizes = Sizes::default();
    while let Some(message) = incoming.recv().await {
        match message {
            Incoming::Data(Channel::Stdin, bytes) => {
                if let Some(open) = &input
                    && open.queue.send(bytes).await.is_err()
                {
                    input = None; // The container reads no more.
                }
            }
            Incoming::End(Channel::Stdin) => {
                let ended = input.take();
                if options.input_ends {
                    control.end_input().await;
                } else if let Some(Input { queue, task }) = ended {
                    drop(queue);
                    tokio::select! {
                        _ = task => {}
                        () = until_left(incoming) => {}
                    }
                    return;
                }
            }
            Incoming::Data(Channel::Resize, bytes) => {
                if let Some(size) = sizes.newest(&bytes) {
                    control.resize(size.width, size.height).await;
                }
            }
            Incoming::Data(..) | Incoming::End(_) => {}
        }
    }
}

async fn until_left(incoming: &mut mpsc::Receiver<Incoming>) {
    while incoming.recv().await.is_some() {}
}
