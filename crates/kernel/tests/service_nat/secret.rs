//! Nobody outside of the node can say by which port a client comes to an endpoint (RFC 6056).

use std::hash::Hasher;
#[expect(deprecated, reason = "the one SipHash-2-4 of the standard library")]
use std::hash::SipHasher;
use std::net::SocketAddr;

use aya::maps::{Array, Map, MapData};
use ebpf_abi::address_bytes;
use ebpf_abi::flows::NatSecret;
use kernel::bpf::service_nat::MASQUERADE_PORTS;

use crate::frames::{Bench, endpoint, segment};
use crate::lab::pod_addresses;
use crate::scene::{FAMILIES, Frontend, TCP, UDP, node_addresses};
use crate::wire::SYN;

const CLIENT_PORT: u16 = 40_000;
/// Clients of each family and protocol.
const ROUNDS: u16 = 50;
/// Of all guesses so many are right by chance at most: one in 13,616 is.
const CHANCE: usize = 3;
/// So many clients at most find their first port taken by another.
const COLLISIONS: usize = 15;

type Secret = Array<MapData, [u8; NatSecret::BYTES]>;

fn secret_of(bench: &Bench) -> Secret {
    let pin = bench.scene.node.file_system.join("flatnet/flows-v1/maps/nat_secret");
    let map = MapData::from_pin(pin).and_then(Map::from_map_data).expect("the map");
    map.try_into().expect("an array")
}

fn read(map: &Secret) -> NatSecret {
    NatSecret::from_bytes(&map.get(&0, 0).expect("the secret"))
}

/// The port at which the search begins, as the programs compute it.
fn first_port(secret: &NatSecret, protocol: u8, ends: [SocketAddr; 3]) -> u16 {
    let mut bytes: Vec<u8> = ends.iter().flat_map(|end| address_bytes(end.ip())).collect();
    let [endpoint, client, frontend] = ends.map(|end| end.port().to_be_bytes());
    bytes.extend([frontend, client, endpoint].concat());
    bytes.push(protocol);
    #[expect(deprecated, reason = "as above")]
    let mut hasher = SipHasher::new_with_keys(secret.first, secret.second);
    hasher.write(&bytes);
    let offset = hasher.finish() as u32 % MASQUERADE_PORTS.len() as u32;
    MASQUERADE_PORTS.start() + offset as u16
}

/// Begins a connection and a datagram flow of many clients. Answers how often somebody who takes
/// `secret` for the node's guessed the port.
fn guessed(bench: &Bench, secret: &NatSecret, client_port: u16) -> usize {
    let mut right = 0;
    for family in FAMILIES {
        let frontend = Frontend::NODE_PORT.address(family);
        for protocol in [TCP, UDP] {
            for port in client_port..client_port + ROUNDS {
                let client = SocketAddr::new(node_addresses(2)[family], port);
                let first = segment(bench.uplink.1, protocol, (client, frontend), SYN);
                bench.enter_marked(bench.uplink, &first);
                let inside = segment([9; 6], protocol, (client, endpoint(family)), SYN);
                let seen = bench.leave_marked(bench.pod, &inside).source;
                let ends = [endpoint(family), client, frontend];
                right += usize::from(seen.port() == first_port(secret, protocol, ends));
            }
        }
    }
    right
}

/// The attacker knows all but the secret. Whoever knows the secret too is right each time, and so
/// is the attacker where there is none: that is what the secret keeps away.
#[test]
fn who_lacks_the_nodes_secret_cannot_say_which_port_a_client_gets() {
    let all = 2 * FAMILIES.len() * usize::from(ROUNDS);
    let mut bench = Bench::new();
    bench.scene.serve(Frontend::NODE_PORT, &[pod_addresses(1, 12)]);
    let (own, none) = (read(&secret_of(&bench)), NatSecret::default());
    assert_ne!(own, none);
    let others = read(&secret_of(&Bench::new()));
    assert_ne!(own, others, "each node draws its own");
    for (wrong, from) in [(&none, CLIENT_PORT), (&others, CLIENT_PORT + ROUNDS)] {
        let right = guessed(&bench, wrong, from);
        assert!(right <= CHANCE, "{right} of {all} were guessed");
    }
    let right = guessed(&bench, &own, CLIENT_PORT + 2 * ROUNDS);
    assert!(right >= all - COLLISIONS, "{right} of {all} are where they shall be");

    secret_of(&bench).set(0, none.to_bytes(), 0).expect("no secret");
    let right = guessed(&bench, &none, CLIENT_PORT + 3 * ROUNDS);
    assert!(right >= all - COLLISIONS, "without a secret {right} of {all} are guessed");
}

/// A client that comes again gets its port again, whatever processes came and went.
#[test]
fn the_secret_outlives_the_process() {
    let mut bench = Bench::new();
    let own = read(&secret_of(&bench));
    bench.scene.restart();
    assert_eq!(read(&secret_of(&bench)), own);
}
