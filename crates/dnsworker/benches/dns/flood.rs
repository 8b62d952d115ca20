//! One client's question behind a flood of another's.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use crate::lab::{DNS_ADDRESS, Lab};
use crate::questions::{Asking, PLAIN, Question};

/// The limit of each client, in questions a second; the default of the configuration.
pub const LIMIT: u32 = 1000;
/// Questions of the flood before each of the client's, which come every so often.
pub const BURST: usize = 64;
const INTERVAL: Duration = Duration::from_millis(2);
/// Questions of the client.
const QUESTIONS: usize = 2000;
/// In which a worker takes another configuration.
const RELOAD: Duration = Duration::from_secs(2);

/// Gives the worker another limit; none is 0.
pub fn limit(lab: &Lab, queries_per_second: u32) {
    let text =
        format!("rate_limit: {{queries_per_second: {queries_per_second}, burst: {LIMIT}}}\n");
    std::fs::write(lab.config_file(), text).expect("writes");
    std::thread::sleep(RELOAD);
}

/// The times of round trips in microseconds, the shortest first.
pub fn times(burst: usize) -> Vec<u128> {
    let flooder = UdpSocket::bind("127.0.0.66:0").expect("a socket");
    flooder.set_nonblocking(true).expect("a socket");
    let mut client = Asking::new(DNS_ADDRESS.into(), PLAIN);
    let mut times = Vec::with_capacity(QUESTIONS);
    for number in 0..QUESTIONS {
        for place in 0..burst {
            let (message, _) = Question::Missing.message(number * BURST + place);
            // What does not fit is not flooded.
            let _ = flooder.send_to(&message, DNS_ADDRESS);
        }
        let began = Instant::now();
        client.ask(1, 1);
        times.push(began.elapsed().as_micros());
        let mut answer = [0; 512];
        while flooder.recv(&mut answer).is_ok() {}
        std::thread::sleep(INTERVAL);
    }
    times.sort_unstable();
    times
}
