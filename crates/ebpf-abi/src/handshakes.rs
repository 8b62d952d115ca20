//! TCP handshakes that nobody has answered, of connections that `bpf/forward.c` carries past the
//! kernel's connection tracking. The value of an entry is when the handshake was tried last, in
//! nanoseconds since the machine started; its answer, also a refusal, removes it.

use crate::layout::{Layout, abi_struct};

/// Most that are remembered; the longest untried go first.
pub const HANDSHAKES_MAX: u32 = 8192;

abi_struct! {
    /// A connection, as its first packet says.
    HandshakeKey {
        /// Who tries.
        source: [u8; 16],
        /// Who shall answer.
        destination: [u8; 16],
        /// Its source port.
        source_port: u16,
        /// Its destination port.
        destination_port: u16,
    }
}

/// All structures, in the order of the header.
pub(crate) const LAYOUTS: [&Layout; 1] = [&HandshakeKey::LAYOUT];

/// Numbers that both sides use, by their names in C.
pub(crate) const NUMBERS: [(&str, u32); 1] = [("HANDSHAKES_MAX", HANDSHAKES_MAX)];
