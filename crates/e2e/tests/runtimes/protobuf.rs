//! As much of the Protocol Buffers encoding (protobuf.dev/programming-guides/encoding) as the calls
//! of a kubelet need: numbers, texts, messages and maps of texts.

use anyhow::{Context, Result, bail};

const VARINT: u64 = 0;
const LENGTH_DELIMITED: u64 = 2;

/// A message that is being written.
#[derive(Clone, Debug, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// Adds a number; zero is the default and stays away.
    pub fn number(mut self, field: u64, value: u64) -> Self {
        if value != 0 {
            self.varint(field << 3 | VARINT);
            self.varint(value);
        }
        self
    }

    /// Adds a text.
    pub fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    /// Adds a message.
    pub fn message(self, field: u64, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    /// Adds an entry of a map from text to text.
    pub fn entry(self, field: u64, key: &str, value: &str) -> Self {
        self.message(field, &Self::default().text(1, key).text(2, value))
    }

    /// The encoded message.
    pub fn encoded(&self) -> &[u8] {
        &self.0
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | LENGTH_DELIMITED);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A field of a message that was received.
enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

/// A message that was received: its fields in order.
pub struct Reply(Vec<(u64, Value)>);

impl Reply {
    /// Reads a message.
    pub fn read(mut bytes: &[u8]) -> Result<Self> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes)?;
            let value = match tag & 7 {
                VARINT => Value::Number(varint(&mut bytes)?),
                LENGTH_DELIMITED => {
                    let length = usize::try_from(varint(&mut bytes)?)?;
                    let (value, rest) = bytes.split_at_checked(length).context("cut short")?;
                    bytes = rest;
                    Value::Bytes(value.to_vec())
                }
                other => bail!("an encoding that no message here has: {other}"),
            };
            fields.push((tag >> 3, value));
        }
        Ok(Self(fields))
    }

    /// A number; absent is zero.
    pub fn number(&self, field: u64) -> u64 {
        self.0
            .iter()
            .find_map(|(number, value)| match value {
                Value::Number(value) if *number == field => Some(*value),
                _ => None,
            })
            .unwrap_or(0)
    }

    /// A text; absent is empty.
    pub fn text(&self, field: u64) -> String {
        let text = self.all(field).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    /// Each message of a repeated field.
    pub fn messages(&self, field: u64) -> Result<Vec<Self>> {
        self.all(field).map(Self::read).collect()
    }

    /// A message; absent is empty.
    pub fn message(&self, field: u64) -> Result<Self> {
        Self::read(self.all(field).next().unwrap_or_default())
    }

    fn all(&self, field: u64) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter_map(move |(number, value)| match value {
            Value::Bytes(value) if *number == field => Some(value.as_slice()),
            _ => None,
        })
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().context("cut short")?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a number of more than 64 bits")
}
