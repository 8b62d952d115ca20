//! Netlink messages as bytes: [`Request`] writes one, [`Attributes`] reads attributes with every
//! length checked (`include/uapi/linux/netlink.h`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::MacAddress;

/// Bytes of `struct nlmsghdr`.
pub const HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// The bits of an attribute's type that are flags (`NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`).
const ATTRIBUTE_FLAGS: u16 = 0xc000;
const NESTED: u16 = 0x8000;

/// One message to the kernel, being written.
#[derive(Clone, Debug)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A message with its family header (such as `struct ifinfomsg`) and no attributes.
    /// `NLM_F_REQUEST` is set; the socket sets `NLM_F_ACK`, the length and the sequence number.
    pub fn new(kind: u16, flags: i32, family_header: &[u8]) -> Self {
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or(u16::MAX);
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(family_header);
        pad(&mut bytes);
        Self { bytes }
    }

    /// Overwrites one byte of the family header.
    pub(crate) fn header_byte(&mut self, offset: usize, value: u8) {
        if let Some(byte) = self.bytes.get_mut(HEADER_BYTES + offset) {
            *byte = value;
        }
    }

    /// Adds one attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        pad(&mut self.bytes);
        self
    }

    /// Adds a number of one byte.
    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.attribute(kind, &[value])
    }

    /// Adds a number in host order.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Adds a text with its final zero.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Adds an address of either family.
    pub fn address(&mut self, kind: u16, value: IpAddr) -> &mut Self {
        match value {
            IpAddr::V4(value) => self.attribute(kind, &value.octets()),
            IpAddr::V6(value) => self.attribute(kind, &value.octets()),
        }
    }

    /// Adds what `fill` writes as one nested attribute. `header` goes before the inner
    /// attributes (only `VETH_INFO_PEER` has one).
    pub fn nested(&mut self, kind: u16, header: &[u8], fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.attribute(kind | NESTED, header);
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// The message under a sequence number, with the given flags besides its own.
    pub(crate) fn finish(&self, sequence: u32, flags: i32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let own = u16::from_ne_bytes([bytes[6], bytes[7]]);
        let all = own | u16::try_from(flags).unwrap_or(0);
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        bytes[6..8].copy_from_slice(&all.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(aligned(bytes.len()), 0);
}

/// Rounded up to netlink's alignment of four bytes.
pub(crate) fn aligned(length: usize) -> usize {
    length.div_ceil(4) * 4
}

/// Reads attributes one by one. Ends at the first whose length does not fit.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The attributes in these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The value of the first attribute of a type.
    pub fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// A number in host order.
    pub fn u32(self, kind: u16) -> Option<u32> {
        self.find(kind).and_then(u32_of)
    }

    /// A number of one byte.
    pub fn u8(self, kind: u16) -> Option<u8> {
        self.find(kind)?.first().copied()
    }

    /// A text, without its final zero; foreign bytes are replaced.
    pub fn text(self, kind: u16) -> Option<String> {
        let bytes = self.find(kind)?;
        let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
        Some(String::from_utf8_lossy(bytes).into_owned())
    }

    /// An address of either family, told by its length.
    pub fn address(self, kind: u16) -> Option<IpAddr> {
        address_of(self.find(kind)?)
    }

    /// A link-layer address.
    pub fn mac(self, kind: u16) -> Option<MacAddress> {
        Some(MacAddress(self.find(kind)?.try_into().ok()?))
    }

    /// The attributes inside one.
    pub fn nested(self, kind: u16) -> Option<Attributes<'a>> {
        self.find(kind).map(Attributes::new)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_of(self.rest.get(0..2)?)?);
        let kind = u16_of(self.rest.get(2..4)?)? & !ATTRIBUTE_FLAGS;
        let value = self.rest.get(ATTRIBUTE_HEADER_BYTES..length)?;
        self.rest = self.rest.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// The first two bytes as a number in host order.
pub fn u16_of(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?))
}

/// The first four bytes as a number in host order.
pub fn u32_of(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(0..4)?.try_into().ok()?))
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// The `AF_*` number of an address.
pub(crate) fn family_of(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_writes_attributes_read() {
        let mut request = Request::new(1, 0, &[0; 3]);
        request.text(3, "veth0").u32(4, 1450).nested(18, &[], |inner| {
            inner.address(1, "10.0.0.1".parse().expect("an address")).u8(2, 7);
        });
        let bytes = request.finish(9, libc::NLM_F_ACK);
        assert_eq!(u32_of(&bytes), u32::try_from(bytes.len()).ok());
        let attributes = Attributes::new(&bytes[HEADER_BYTES + 4..]);
        assert_eq!(attributes.text(3).as_deref(), Some("veth0"));
        assert_eq!(attributes.u32(4), Some(1450));
        let inner = attributes.nested(18).expect("the nested one");
        assert_eq!(inner.address(1), "10.0.0.1".parse().ok());
        assert_eq!(inner.u8(2), Some(7));
    }

    #[test]
    fn lengths_that_do_not_fit_end_the_reading() {
        let length = |length: u16| [&length.to_ne_bytes()[..], &[1, 0, 9, 9]].concat();
        for wrong in [0, 3, 7, u16::MAX] {
            assert_eq!(Attributes::new(&length(wrong)).count(), 0, "length {wrong}");
        }
        assert_eq!(Attributes::new(&length(6)).count(), 1);
        assert_eq!(Attributes::new(&[1, 0, 0]).count(), 0);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end_in_attributes_within_them(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)
        ) {
            let attributes = Attributes::new(&bytes);
            let total: usize = attributes.map(|(_, value)| value.len() + 4).sum();
            proptest::prop_assert!(total <= bytes.len());
            for kind in 0..40 {
                let _ = (attributes.u32(kind), attributes.text(kind), attributes.mac(kind));
                let _ = (attributes.address(kind), attributes.nested(kind).map(Iterator::count));
            }
        }
    }
}
