//! `udp --rate`: one flow of datagrams for a time, and which of them were never answered.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::{Crc32, pattern};
use crate::resolver::describe;
use crate::summary::Summary;

/// Datagrams under way at most. A machine that is slow is not a network that loses: what does not
/// fit into the server's buffer is not sent. The kernel counts 1280 bytes for a short datagram from a
/// tunnel against the 212,992 that a socket has by default, and may hold back a quarter of what was
/// read (`udp_rmem_release`): 124 fit.
const UNDER_WAY_MAX: usize = 96;
/// How far behind its times the sender may be and still catch up.
const CATCH_UP: Duration = Duration::from_millis(500);
/// The receiver looks at the clock this often.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(50);
/// The bytes that make a datagram differ from all others: its number.
const NUMBER_BYTES: usize = 4;
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 4096;

/// What a flow shall be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) rate: f64,
    pub(crate) duration: Duration,
    /// An answer that takes longer is lost.
    pub(crate) timeout: Duration,
    pub(crate) payload_bytes: usize,
}

/// What both threads know.
#[derive(Default)]
struct State {
    /// When each unanswered datagram was sent, by the checksum that its answer will name.
    under_way: BTreeMap<String, Instant>,
    summary: Summary,
    is_sent: bool,
}

/// Sends over a connected socket until the time is over, and waits for the last answers.
///
/// # Errors
/// When the socket cannot be used.
pub(crate) fn run(socket: &UdpSocket, flow: Flow) -> Result<Summary, String> {
    let interval = Duration::try_from_secs_f64(1.0 / flow.rate)
        .map_err(|_| "the rate must be above 0".to_string())?;
    socket.set_read_timeout(Some(RECEIVE_TIMEOUT)).map_err(|error| describe(&error))?;
    let state = Mutex::new(State::default());
    std::thread::scope(|scope| {
        scope.spawn(|| receive(socket, &state, flow.timeout));
        send(socket, &state, interval, flow);
        lock(&state).is_sent = true;
    });
    Ok(state.into_inner().unwrap_or_else(PoisonError::into_inner).summary)
}

fn send(socket: &UdpSocket, state: &Mutex<State>, interval: Duration, flow: Flow) {
    let mut payload = pattern(0, flow.payload_bytes.max(NUMBER_BYTES));
    let mut next = Instant::now();
    let end = next + flow.duration;
    for number in 0_u32.. {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let now = Instant::now();
        if now >= end {
            return;
        }
        if lock(state).under_way.len() >= UNDER_WAY_MAX {
            std::thread::sleep(interval);
            continue;
        }
        next = (next + interval).max(now.checked_sub(CATCH_UP).unwrap_or(now));
        if let Some(place) = payload.get_mut(..NUMBER_BYTES) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        let mut crc = Crc32::default();
        crc.add(&payload);
        // Noted first: the answer may be faster than we are.
        lock(state).under_way.insert(crc.text(), now);
        if let Err(error) = socket.send(&payload) {
            let mut known = lock(state);
            known.under_way.remove(&crc.text());
            known.summary.failed(&describe(&error));
        }
    }
}

fn receive(socket: &UdpSocket, state: &Mutex<State>, timeout: Duration) {
    let mut buffer = [0; ANSWER_BYTES_MAX];
    loop {
        let received = socket.recv(&mut buffer);
        let mut known = lock(state);
        match received {
            Ok(length) => known.take(buffer.get(..length).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // An ICMP error about one of ours, which is then not answered and counted below.
            Err(error) => known.summary.failed(&describe(&error)),
        }
        known.forget_lost(timeout);
        if known.is_sent && known.under_way.is_empty() {
            return;
        }
    }
}

impl State {
    fn take(&mut self, answer: &[u8]) {
        let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
        let sent = answer["crc32"].as_str().and_then(|crc| self.under_way.remove(crc));
        match sent {
            Some(sent) => self.summary.succeeded(answer["pod"].as_str(), sent.elapsed()),
            None => self.summary.failed("an answer to nothing that was asked, or a late one"),
        }
    }

    fn forget_lost(&mut self, timeout: Duration) {
        let before = self.under_way.len();
        self.under_way.retain(|_, sent| sent.elapsed() < timeout);
        for _ in self.under_way.len()..before {
            self.summary.failed("lost");
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every third datagram is swallowed, every fourth answered twice.
    #[test]
    fn what_is_lost_or_doubled_is_counted() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        client.connect(server.local_addr().expect("an address")).expect("connected");
        let swallower = std::thread::spawn(move || {
            server.set_read_timeout(Some(Duration::from_secs(1))).expect("set");
            let (mut buffer, mut count) = ([0; 64], 0);
            while let Ok((length, from)) = server.recv_from(&mut buffer) {
                count += 1;
                let mut crc = Crc32::default();
                crc.add(&buffer[..length]);
                let answer = serde_json::json!({"pod": "p", "crc32": crc.text()}).to_string();
                let times = if count % 3 == 0 { 0 } else { 1 + u32::from(count % 4 == 0) };
                (0..times).for_each(|_| drop(server.send_to(answer.as_bytes(), from)));
            }
            count
        });
        let flow = Flow {
            rate: 500.0,
            duration: Duration::from_millis(300),
            timeout: Duration::from_millis(200),
            payload_bytes: 32,
        };
        let summary = run(&client, flow).expect("ran").json();
        let sent: u64 = swallower.join().expect("ended");
        assert!(sent > 12, "{sent} were sent");
        assert_eq!(summary["errors"]["lost"], sent / 3);
        assert_eq!(summary["by_pod"]["p"], sent - sent / 3);
        let doubled = sent / 4 - sent / 12;
        assert_eq!(summary["failed"], sent / 3 + doubled);
    }
}
