//! Domain names in the wire format (RFC 1035, 3.1 and 4.1.4).

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest name in octets, length octets and root included (RFC 1035, 2.3.4).
pub(crate) const MAX_NAME_OCTETS: usize = 255;
/// The longest label in octets.
pub(crate) const MAX_LABEL_OCTETS: usize = 63;

/// A domain name, uncompressed, in the letter case that it was written in. Two names that differ
/// in case only are different values: compare [`Name::to_lower`] forms, or use [`Name::is`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Labels with their length octets, and the root's zero at the end.
    wire: Vec<u8>,
}

/// Why octets or text are no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The message ends within the name.
    #[error("the name runs beyond the end of the message")]
    Cut,
    /// More than 255 octets.
    #[error("the name is longer than 255 octets")]
    TooLong,
    /// A label of no or more than 63 octets.
    #[error("a label of the name is empty or longer than 63 octets")]
    BadLabel,
    /// A compression pointer that does not lead backwards.
    #[error("a compression pointer does not lead backwards")]
    BadPointer,
}

impl Name {
    /// The root of all names.
    pub fn root() -> Self {
        Self { wire: vec![0] }
    }

    /// Reads the name at an offset and returns it with the offset behind it. Each pointer must
    /// lead to before the place where reading began or was last sent to, so the walk ends.
    ///
    /// # Errors
    /// When the octets there are no name.
    pub fn read(message: &[u8], at: usize) -> Result<(Self, usize), NameError> {
        let mut wire = Vec::with_capacity(64);
        let mut position = at;
        let mut lowest = at;
        let mut end = None;
        loop {
            let length = usize::from(*message.get(position).ok_or(NameError::Cut)?);
            match length {
                0 => {
                    wire.push(0);
                    return Ok((Self { wire }, end.unwrap_or(position + 1)));
                }
                1..=MAX_LABEL_OCTETS => {
                    let label = message.get(position..=position + length).ok_or(NameError::Cut)?;
                    // One octet stays for the root.
                    if wire.len() + label.len() >= MAX_NAME_OCTETS {
                        return Err(NameError::TooLong);
                    }
                    wire.extend_from_slice(label);
                    position += length + 1;
                }
                0xC0.. => {
                    let low = *message.get(position + 1).ok_or(NameError::Cut)?;
                    let target = (length & 0x3F) << 8 | usize::from(low);
                    if target >= lowest {
                        return Err(NameError::BadPointer);
                    }
                    end.get_or_insert(position + 2);
                    lowest = target;
                    position = target;
                }
                _ => return Err(NameError::BadLabel),
            }
        }
    }

    /// The name of these labels, the leftmost first.
    ///
    /// # Errors
    /// When a label or the whole is too long, or a label is empty.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, NameError> {
        let mut wire = Vec::with_capacity(64);
        for label in labels {
            let length = u8::try_from(label.len()).map_err(|_| NameError::BadLabel)?;
            if label.is_empty() || label.len() > MAX_LABEL_OCTETS {
                return Err(NameError::BadLabel);
            }
            wire.push(length);
            wire.extend_from_slice(label);
        }
        wire.push(0);
        if wire.len() > MAX_NAME_OCTETS {
            return Err(NameError::TooLong);
        }
        Ok(Self { wire })
    }

    /// The name of octets that were read by [`read_plain`], or come from a name.
    pub(crate) fn of_wire(wire: &[u8]) -> Self {
        Self { wire: wire.to_vec() }
    }

    /// The octets of the wire format, uncompressed.
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// The labels, the leftmost first, without the root.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        labels(&self.wire)
    }

    /// The same name in lower case. Length octets are below 64 and so no letters.
    pub fn to_lower(&self) -> Self {
        Self { wire: self.wire.to_ascii_lowercase() }
    }

    /// Whether both are one name, in any letter case (RFC 1035, 2.3.3).
    pub fn is(&self, other: &Self) -> bool {
        self.wire.eq_ignore_ascii_case(&other.wire)
    }
}

/// The labels of a name's octets, the leftmost first.
pub(crate) fn labels(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = wire;
    std::iter::from_fn(move || {
        let (length, tail) = rest.split_first()?;
        if *length == 0 {
            return None;
        }
        let (label, tail) = tail.split_at_checked(usize::from(*length))?;
        rest = tail;
        Some(label)
    })
}

/// The octets of a name without compression, where they stand.
pub(crate) fn read_plain(message: &[u8], at: usize) -> Result<&[u8], NameError> {
    let mut position = at;
    loop {
        let length = usize::from(*message.get(position).ok_or(NameError::Cut)?);
        match length {
            0..=MAX_LABEL_OCTETS => position += length + 1,
            0xC0.. => return Err(NameError::BadPointer),
            _ => return Err(NameError::BadLabel),
        }
        if position - at > MAX_NAME_OCTETS {
            return Err(NameError::TooLong);
        }
        if length == 0 {
            return message.get(at..position).ok_or(NameError::Cut);
        }
    }
}

/// The offset behind a name, which ends at its first pointer; where that leads is not looked at.
pub(crate) fn skip(message: &[u8], at: usize) -> Result<usize, NameError> {
    let mut position = at;
    loop {
        let length = usize::from(*message.get(position).ok_or(NameError::Cut)?);
        match length {
            0 => return Ok(position + 1),
            1..=MAX_LABEL_OCTETS => position += length + 1,
            0xC0.. => return Ok(position + 2),
            _ => return Err(NameError::BadLabel),
        }
    }
}

/// In octets of the wire format; read back only when they are a name.
impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.wire)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Vec::<u8>::deserialize(deserializer)?;
        match read_plain(&wire, 0) {
            Ok(name) if name.len() == wire.len() => Ok(Self { wire }),
            Ok(_) => Err(D::Error::custom("octets behind a name")),
            Err(error) => Err(D::Error::custom(error)),
        }
    }
}

impl FromStr for Name {
    type Err = NameError;

    /// Reads dotted text, with or without the final dot. There are no escapes: names of services
    /// and hosts have no need of them.
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_suffix('.').unwrap_or(text) {
            "" => Ok(Self::root()),
            text => Self::from_labels(text.split('.').map(str::as_bytes)),
        }
    }
}

impl fmt::Display for Name {
    /// Master file form (RFC 1035, 5.1), with the final dot.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.wire.len() == 1 {
            return f.write_str(".");
        }
        for label in self.labels() {
            for octet in label {
                match octet {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(*octet))?,
                    0x21..=0x7E => write!(f, "{}", char::from(*octet))?,
                    _ => write!(f, "\\{octet:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_print_as_they_were_read() {
        for text in ["web.shop.svc.cluster.local.", ".", "_http._tcp.Web.", "a."] {
            assert_eq!(text.parse::<Name>().expect("a name").to_string(), text);
        }
        let odd = Name::from_labels([b"a.b".as_slice(), b"\x07\\"]).expect("a name");
        assert_eq!(odd.to_string(), "a\\.b.\\007\\\\.");
    }

    #[test]
    fn limits_of_rfc_1035_hold() {
        let label = "x".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "x".repeat(61));
        assert_eq!(longest.parse::<Name>().map(|name| name.wire().len()), Ok(255));
        assert_eq!(format!("{longest}x").parse::<Name>(), Err(NameError::TooLong));
        assert_eq!(format!("{label}x").parse::<Name>(), Err(NameError::BadLabel));
        assert_eq!("a..b".parse::<Name>(), Err(NameError::BadLabel));
    }

    #[test]
    fn pointers_lead_backwards_or_fail() {
        // "local" at 0, "web" and a pointer to it at 7.
        let message = b"\x05local\0\x03web\xC0\x00\xC0\x07";
        let (name, end) = Name::read(message, 7).expect("a name");
        assert_eq!((name.to_string().as_str(), end), ("web.local.", 13));
        let (name, end) = Name::read(message, 13).expect("a name");
        assert_eq!((name.to_string().as_str(), end), ("web.local.", 15));
        for (message, error) in [
            (b"\xC0\x00".as_slice(), NameError::BadPointer),
            (b"\xC0\x05", NameError::BadPointer),
            (b"\x01a\xC0\x00", NameError::BadPointer),
            (b"\x05ab", NameError::Cut),
            (b"\xC0", NameError::Cut),
            (b"\x80", NameError::BadLabel),
            (b"", NameError::Cut),
        ] {
            assert_eq!(Name::read(message, 0), Err(error), "{message:?}");
        }
    }

    #[test]
    fn a_long_chain_of_labels_is_refused() {
        let message = b"\x01a".repeat(200);
        assert_eq!(Name::read(&message, 0), Err(NameError::TooLong));
    }

    proptest! {
        #[test]
        fn reading_never_panics(message in proptest::collection::vec(any::<u8>(), 0..600), at in 0usize..620) {
            if let Ok((name, end)) = Name::read(&message, at) {
                prop_assert!(name.wire().len() <= MAX_NAME_OCTETS);
                prop_assert!(end <= message.len());
            }
        }

        #[test]
        fn what_is_written_reads_back(labels in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 1..20), 0..10)) {
            let name = Name::from_labels(labels.iter().map(Vec::as_slice)).expect("fits");
            let (read, end) = Name::read(name.wire(), 0).expect("a name");
            prop_assert_eq!(end, name.wire().len());
            prop_assert_eq!(read.labels().map(<[u8]>::to_vec).collect::<Vec<_>>(), labels);
        }
    }
}
