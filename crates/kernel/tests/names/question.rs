//! Questions.

pub const TYPE_A: u16 = 1;

/// A question in the making: [`Question::plain`] is what the kernel answers, and each field what may
/// be other.
#[derive(Clone, Debug)]
pub struct Question {
    pub name: String,
    pub kind: u16,
    pub class: u16,
    pub id: u16,
    pub flags: u16,
    /// The payload and the flags of an OPT record, and its options.
    pub edns: Option<(u16, u16, Vec<u8>)>,
    /// What follows the message.
    pub trailing: Vec<u8>,
    /// Records of an answer that it claims to have.
    pub answers: u16,
}

impl Question {
    pub fn plain(name: &str, kind: u16) -> Self {
        Self {
            name: name.into(),
            kind,
            class: 1,
            id: 0x1234,
            flags: 0x0100,
            edns: None,
            trailing: vec![],
            answers: 0,
        }
    }

    pub fn message(&self) -> Vec<u8> {
        let additional = u16::from(self.edns.is_some());
        let mut message = Vec::new();
        for number in [self.id, self.flags, 1, self.answers, 0, additional] {
            message.extend(number.to_be_bytes());
        }
        for label in self.name.split('.').filter(|label| !label.is_empty()) {
            message.push(label.len() as u8);
            message.extend(label.as_bytes());
        }
        message.push(0);
        message.extend(self.kind.to_be_bytes());
        message.extend(self.class.to_be_bytes());
        if let Some((payload, flags, options)) = &self.edns {
            message.extend([0, 0, 41]);
            message.extend(payload.to_be_bytes());
            message.extend([0, 0]);
            message.extend(flags.to_be_bytes());
            message.extend((options.len() as u16).to_be_bytes());
            message.extend(options);
        }
        message.extend(&self.trailing);
        message
    }
}
