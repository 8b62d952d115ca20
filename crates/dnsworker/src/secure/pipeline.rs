//! Many questions on one connection, answered in any order (RFC 7766, 6.2.1.1; RFC 7858, 3.3).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::exchanges::framed;

/// Questions of one connection that wait for their answers.
const MAX_WAITING: usize = 512;
/// A connection without questions is closed after this time.
const IDLE: Duration = Duration::from_secs(30);
/// One that brought nothing for this time, though a question waits for as long, is given up: its
/// questions then have time for another one.
const DEAD: Duration = Duration::from_secs(2);
/// How often it is looked whether a connection is idle or dead.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The way to the task that has the connection.
#[derive(Clone)]
pub(super) struct Pipeline {
    questions: mpsc::Sender<Question>,
}

struct Question {
    message: Vec<u8>,
    answer: oneshot::Sender<Vec<u8>>,
}

/// A question that was sent.
struct Waiting {
    /// The number under which the asker knows it. On the connection it has another: askers do not
    /// know of one another's.
    id: [u8; 2],
    since: Instant,
    answer: oneshot::Sender<Vec<u8>>,
}

/// What the two directions of a connection share.
struct Connection {
    waiting: BTreeMap<u16, Waiting>,
    last_id: u16,
    last_heard: Instant,
}

impl Pipeline {
    /// Takes a connection over.
    pub(super) fn new<S: AsyncRead + AsyncWrite + 'static>(stream: S) -> Self {
        let (questions, receiver) = mpsc::channel(MAX_WAITING);
        tokio::task::spawn_local(carry(stream, receiver));
        Self { questions }
    }

    /// Whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.questions.is_closed()
    }

    /// Asks one question.
    pub(super) async fn ask(&self, message: &[u8]) -> Result<Vec<u8>> {
        let (answer, answered) = oneshot::channel();
        let question = Question { message: message.to_vec(), answer };
        let ended = "the server closed the connection before it answered";
        if self.questions.send(question).await.is_err() {
            bail!(ended);
        }
        answered.await.context(ended)
    }
}

/// Carries questions and answers until the connection ends, is idle for long, or is dead: a server
/// that lost its memory of the connection, or its network, does not say so.
async fn carry<S: AsyncRead + AsyncWrite>(stream: S, mut questions: mpsc::Receiver<Question>) {
    let (reader, writer) = tokio::io::split(stream);
    let connection = RefCell::new(Connection {
        waiting: BTreeMap::new(),
        last_id: 0,
        last_heard: Instant::now(),
    });
    tokio::select! {
        _ = send(writer, &mut questions, &connection) => {}
        _ = receive(reader, &connection) => {}
        () = end(&connection) => {}
    }
    // Before the askers hear of the end, so that their next attempt makes another connection.
    questions.close();
}

async fn send<S: AsyncWrite>(
    mut writer: WriteHalf<S>,
    questions: &mut mpsc::Receiver<Question>,
    connection: &RefCell<Connection>,
) -> Result<()> {
    while let Some(mut question) = questions.recv().await {
        let Some(id) = connection.borrow_mut().free_id() else {
            // The asker hears that there is no answer.
            continue;
        };
        let Some(place) = question.message.get_mut(..2) else { continue };
        let waiting =
            Waiting { id: [place[0], place[1]], since: Instant::now(), answer: question.answer };
        place.copy_from_slice(&id.to_be_bytes());
        connection.borrow_mut().waiting.insert(id, waiting);
        writer.write_all(&framed(&question.message)).await?;
        writer.flush().await?;
    }
    Ok(())
}

async fn receive<S: AsyncRead>(
    mut reader: ReadHalf<S>,
    connection: &RefCell<Connection>,
) -> Result<()> {
    loop {
        let length = reader.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        reader.read_exact(&mut answer).await?;
        let mut connection = connection.borrow_mut();
        connection.last_heard = Instant::now();
        // What nobody waits for any more is passed over.
        if let Some(place) = answer.get_mut(..2)
            && let Some(waiting) =
                connection.waiting.remove(&u16::from_be_bytes([place[0], place[1]]))
        {
            place.copy_from_slice(&waiting.id);
            let _ = waiting.answer.send(answer);
        }
    }
}

/// Returns when a connection is idle or dead.
async fn end(connection: &RefCell<Connection>) {
    let mut used = Instant::now();
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let mut connection = connection.borrow_mut();
        let is_silent = connection.last_heard.elapsed() >= DEAD;
        let late = |waiting: &Waiting| waiting.since.elapsed() >= DEAD;
        if is_silent && connection.waiting.values().any(late) {
            return;
        }
        connection.waiting.retain(|_, waiting| !waiting.answer.is_closed());
        if !connection.waiting.is_empty() {
            used = Instant::now();
        } else if used.elapsed() >= IDLE && connection.last_heard.elapsed() >= IDLE {
            return;
        }
    }
}

impl Connection {
    fn free_id(&mut self) -> Option<u16> {
        if self.waiting.len() >= MAX_WAITING {
            return None;
        }
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if !self.waiting.contains_key(&self.last_id) {
                return Some(self.last_id);
            }
        }
    }
}
