//! A name server that lies: the first label of a name says how. Behind every lie it also tells the
//! truth, so that whoever passes the lie over has an answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::lab::Lab;

/// What is true, and what the liar wants to be believed.
pub const TRUTH: [u8; 4] = [192, 0, 2, 80];
pub const LIE: [u8; 4] = [6, 6, 6, 6];
/// Where it is asked.
pub const LIAR: &str = "127.0.0.5:53";
/// Where lies come from that the liar cannot send itself.
const ELSEWHERE: [&str; 2] = ["127.0.0.5:5353", "127.0.0.6:53"];
/// Wrong datagrams before the right one, where there are many.
const MANY: usize = 100;
/// The time between two octets of an answer that drips.
const DRIP: Duration = Duration::from_millis(120);

/// A question that the liar saw.
#[derive(Clone)]
pub struct Asked {
    pub from: SocketAddr,
    pub message: Vec<u8>,
}

/// The liar; its threads end with the test program.
#[derive(Clone, Default)]
pub struct Liar {
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Octets of answers that drip, sent so far.
    dripped: Arc<AtomicUsize>,
    /// Connections that were closed meanwhile.
    left: Arc<AtomicUsize>,
}

impl Liar {
    pub fn start(lab: &Lab) -> Self {
        let liar = Self::default();
        let (udp, tcp, elsewhere) = lab.on_host(|| {
            let udp = UdpSocket::bind(LIAR).expect("a free port");
            let tcp = TcpListener::bind(LIAR).expect("a free port");
            (udp, tcp, ELSEWHERE.map(|address| UdpSocket::bind(address).expect("a free port")))
        });
        let own = liar.clone();
        std::thread::spawn(move || own.serve_datagrams(&udp, &elsewhere));
        let own = liar.clone();
        std::thread::spawn(move || {
            while let Ok((stream, from)) = tcp.accept() {
                let own = own.clone();
                std::thread::spawn(move || own.serve_stream(stream, from));
            }
        });
        liar
    }

    /// The questions whose name begins with a label.
    pub fn asked(&self, label: &str) -> Vec<Asked> {
        let asked = self.asked.lock().expect("a lock");
        asked.iter().filter(|asked| label_of(&asked.message) == label).cloned().collect()
    }

    pub fn dripped(&self) -> usize {
        self.dripped.load(Ordering::SeqCst)
    }

    pub fn left(&self) -> usize {
        self.left.load(Ordering::SeqCst)
    }

    fn note(&self, from: SocketAddr, message: &[u8]) {
        self.asked.lock().expect("a lock").push(Asked { from, message: message.to_vec() });
    }

    fn serve_datagrams(&self, socket: &UdpSocket, elsewhere: &[UdpSocket; 2]) {
        let mut buffer = [0; 2048];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let question = &buffer[..length];
            self.note(client, question);
            let send = |message: &[u8]| {
                let _ = socket.send_to(message, client);
            };
            let (lie, truth) = (answer(question, LIE), answer(question, TRUTH));
            match label_of(question).as_str() {
                "id" => send(&edited(&lie, |lie| lie[1] ^= 1)),
                "name" => send(&edited(&lie, |lie| lie[13] ^= 3)),
                "type" => send(&edited(&lie, |lie| {
                    let at = end_of_name(lie) + 1;
                    lie[at] = 28;
                })),
                "case" => send(&edited(&lie, |lie| {
                    let end = end_of_name(lie);
                    for octet in lie[12..end].iter_mut().filter(|octet| octet.is_ascii_alphabetic())
                    {
                        *octet ^= 0x20;
                    }
                })),
                "port" => drop(elsewhere[0].send_to(&lie, client)),
                "source" => drop(elsewhere[1].send_to(&lie, client)),
                "query" => send(&edited(&lie, |lie| lie[2] &= 0x7F)),
                "noise" => send(&[0xFF; 600]),
                "short" => send(&lie[..lie.len() - 3]),
                "huge" => send(&huge(question)),
                "many" => (0..MANY).for_each(|_| send(&edited(&lie, |lie| lie[0] ^= 1))),
                "loop" => send(&bomb(question, true)),
                "cut" | "drip" | "bomb" | "circle" => {
                    send(&edited(&truth, |truth| truth[2] |= 0x02));
                    continue;
                }
                "bailiwick" => {
                    send(&with_foreign(question));
                    continue;
                }
                _ => {}
            }
            send(&truth);
        }
    }

    fn serve_stream(&self, mut stream: TcpStream, from: SocketAddr) {
        let mut length = [0; 2];
        while stream.read_exact(&mut length).is_ok() {
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            if stream.read_exact(&mut question).is_err() {
                return;
            }
            self.note(from, &question);
            let truth = answer(&question, TRUTH);
            let message = match label_of(&question).as_str() {
                "cut" => edited(&truth, |truth| truth[2] |= 0x02),
                "bomb" => bomb(&question, false),
                "circle" => circle(&question),
                _ => truth,
            };
            let framed = [&(message.len() as u16).to_be_bytes(), message.as_slice()].concat();
            if label_of(&question) != "drip" {
                let _ = stream.write_all(&framed);
                continue;
            }
            for octet in framed {
                if stream.write_all(&[octet]).is_err() {
                    self.left.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                self.dripped.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(DRIP);
            }
        }
    }
}

fn label_of(message: &[u8]) -> String {
    let length = usize::from(message.get(12).copied().unwrap_or_default());
    let label = message.get(13..13 + length).unwrap_or_default();
    String::from_utf8_lossy(label).to_ascii_lowercase()
}

fn end_of_name(message: &[u8]) -> usize {
    12 + message[12..].iter().position(|octet| *octet == 0).expect("an end") + 1
}

fn edited(message: &[u8], edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = message.to_vec();
    edit(&mut message);
    message
}

/// A header and the question, with so many records to follow.
fn head(question: &[u8], records: u16) -> Vec<u8> {
    let mut message = question[..end_of_name(question) + 4].to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    message[6..8].copy_from_slice(&records.to_be_bytes());
    message[8..12].fill(0);
    message
}

/// The address of the name that was asked for.
fn answer(question: &[u8], address: [u8; 4]) -> Vec<u8> {
    let mut message = head(question, 1);
    message.extend_from_slice(b"\xC0\x0C\0\x01\0\x01\0\0\0\x3C\0\x04");
    message.extend_from_slice(&address);
    message
}

/// The truth, and beside it the address of a name that nobody asked for.
fn with_foreign(question: &[u8]) -> Vec<u8> {
    let mut message = answer(question, TRUTH);
    message[7] = 2;
    message.extend_from_slice(b"\x06victim\x07example\0\0\x01\0\x01\0\0\x0E\x10\0\x04");
    message.extend_from_slice(&LIE);
    message
}

/// Names that point at one another: in a circle, or as many and as long as fit.
fn bomb(question: &[u8], in_circle: bool) -> Vec<u8> {
    if in_circle {
        let mut message = head(question, 1);
        // The owner's pointer leads to itself.
        let at = message.len() as u16 | 0xC000;
        message.extend_from_slice(&at.to_be_bytes());
        message.extend_from_slice(b"\0\x01\0\x01\0\0\0\x3C\0\x04");
        message.extend_from_slice(&LIE);
        return message;
    }
    let mut message = head(question, 0);
    // One name of nearly 255 octets, and then records that are two pointers at it each.
    let at = message.len() as u16 | 0xC000;
    message.extend([b"\x3F".as_slice(), &[b'x'; 63]].concat().repeat(3));
    message.extend_from_slice(b"\0\0\x10\0\x01\0\0\0\x3C\0\0");
    let mut records: u16 = 1;
    while message.len() + 40 < usize::from(u16::MAX) {
        message.extend_from_slice(&at.to_be_bytes());
        message.extend_from_slice(b"\0\x06\0\x01\0\0\0\x3C\0\x18");
        message.extend_from_slice(&at.to_be_bytes());
        message.extend_from_slice(&at.to_be_bytes());
        message.extend_from_slice(&[0; 20]);
        records += 1;
    }
    message[6..8].copy_from_slice(&records.to_be_bytes());
    message
}

/// More than a datagram of ours may bring.
fn huge(question: &[u8]) -> Vec<u8> {
    const DATA_OCTETS: u16 = 60_000;
    let mut message = head(question, 1);
    message.extend_from_slice(b"\xC0\x0C\0\x10\0\x01\0\0\0\x3C");
    message.extend_from_slice(&DATA_OCTETS.to_be_bytes());
    message.resize(message.len() + usize::from(DATA_OCTETS), 0);
    message
}

/// An alias of itself.
fn circle(question: &[u8]) -> Vec<u8> {
    let mut message = head(question, 1);
    message.extend_from_slice(b"\xC0\x0C\0\x05\0\x01\0\0\0\x3C\0\x02\xC0\x0C");
    message
}
