//! Frames from a seed: each part is usually right, and often enough wrong in a way that matters.

use std::net::IpAddr;

use crate::model::{Mac, checksum};

/// A generator of numbers (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).expect("31 bits") % limit
    }

    pub fn one_in(&mut self, number: usize) -> bool {
        self.below(number) == 0
    }

    pub fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    fn bytes(&mut self, number: usize) -> Vec<u8> {
        (0..number).map(|_| u8::try_from(self.below(256)).expect("a byte")).collect()
    }
}

/// From what frames are made.
pub struct Pool {
    pub own_mac: Mac,
    pub macs: Vec<Mac>,
    pub own: Vec<IpAddr>,
    pub addresses: Vec<IpAddr>,
}

impl Pool {
    pub fn frame(&self, random: &mut Random) -> Vec<u8> {
        let mut frame = random.of(&self.macs).to_vec();
        let source = if random.one_in(12) { random.of(&self.macs) } else { self.own_mac };
        frame.extend(source);
        match random.below(12) {
            0 => self.arp(random, &mut frame),
            1 => {
                frame.extend(random.of(&[[0x81, 0x00], [0x88, 0xa8], [0x88, 0xcc], [0, 40]]));
                frame.extend(random.bytes(46));
            }
            2..=6 => self.ipv4(random, &mut frame),
            _ => self.ipv6(random, &mut frame),
        }
        if random.one_in(15) {
            // The kernel takes no test frames that end within the header of IP itself.
            let shortest = match frame[12..14] {
                [8, 0] => 34,
                [0x86, 0xdd] => 54,
                _ => 14,
            };
            frame.truncate(shortest + random.below(frame.len() - shortest + 1));
        }
        frame
    }

    fn address(&self, random: &mut Random, is_ipv6: bool, mostly_own: bool) -> IpAddr {
        let pool = if mostly_own && !random.one_in(6) { &self.own } else { &self.addresses };
        let fitting: Vec<IpAddr> =
            pool.iter().copied().filter(|address| address.is_ipv6() == is_ipv6).collect();
        random.of(&fitting)
    }

    fn arp(&self, random: &mut Random, frame: &mut Vec<u8>) {
        frame.extend([8, 6, 0, 1, 8, 0, 6, random.of(&[4, 4, 4, 16])]);
        frame.extend([0, random.of(&[1, 2])]);
        frame.extend(if random.one_in(4) { random.of(&self.macs) } else { self.own_mac });
        frame.extend(octets(self.address(random, false, true)));
        frame.extend(random.of(&self.macs));
        frame.extend(octets(self.address(random, false, false)));
    }

    fn ipv4(&self, random: &mut Random, frame: &mut Vec<u8>) {
        frame.extend([8, 0]);
        let words = random.of(&[5, 5, 5, 5, 5, 5, 6, 4]);
        let version = if random.one_in(20) { 6 } else { 4 };
        let fragment = random.of(&[[0x40, 0], [0, 0], [0x40, 0], [0, 0], [0x20, 0], [0, 9]]);
        let protocol = random.of(&[6, 6, 17, 17, 1, 132]);
        let time_to_live = random.of(&[64, 64, 64, 255, 2, 1, 0]);
        let mut header = vec![version << 4 | words, 0, 0, 0, 0, 0];
        header.extend(fragment);
        header.extend([time_to_live, protocol, 0, 0]);
        header.extend(octets(self.address(random, false, true)));
        header.extend(octets(self.address(random, false, false)));
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(header);
        frame.extend(vec![1; usize::from(words.saturating_sub(5)) * 4]);
        self.payload(random, protocol, frame);
    }

    fn ipv6(&self, random: &mut Random, frame: &mut Vec<u8>) {
        frame.extend([0x86, 0xdd, if random.one_in(20) { 0x45 } else { 0x60 }, 0, 0, 0, 0, 0]);
        let protocol = random.of(&[6, 6, 17, 58, 58, 58, 59]);
        let headers = if random.one_in(4) { random.of(&[1, 2, 3, 8, 9]) } else { 0 };
        let kinds: Vec<u8> = (0..headers).map(|_| random.of(&[0, 43, 44, 51, 60, 135])).collect();
        frame.push(kinds.first().copied().unwrap_or(protocol));
        frame.push(random.of(&[64, 64, 255, 2, 1, 0]));
        frame.extend(octets(self.address(random, true, true)));
        frame.extend(octets(self.address(random, true, false)));
        for (index, kind) in kinds.iter().enumerate() {
            frame.push(kinds.get(index + 1).copied().unwrap_or(protocol));
            let offset = if random.one_in(4) { 8 } else { 0 };
            match kind {
                44 => frame.extend([0, 0, offset, 0, 0, 0, 1]),
                51 => frame.extend([0, 0, 0, 0, 0, 0, 1]),
                _ if random.one_in(8) => frame.extend([&[1][..], &[0; 14]].concat()),
                _ => frame.extend([0; 7]),
            }
        }
        self.payload(random, protocol, frame);
    }

    fn payload(&self, random: &mut Random, protocol: u8, frame: &mut Vec<u8>) {
        match protocol {
            17 => {
                let ports = [[0, 67, 0, 68], [2, 35, 2, 34], [0, 68, 0, 67], [1, 2, 3, 4]];
                frame.extend(random.of(&ports));
                frame.extend([0, 8, 0, 0]);
            }
            58 => {
                let kind = random.of(&[128, 128, 129, 133, 134, 135, 135, 136, 136, 137, 143, 131]);
                frame.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
                frame.extend(octets(self.address(random, true, true)));
            }
            _ => {}
        }
        let bytes = if random.one_in(10) { 1500 } else { random.below(64) };
        frame.extend(random.bytes(bytes));
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
