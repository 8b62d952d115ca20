//! Which kind allows which names, generated names and uids.

pub use schema::names::{
    MAX_LABEL_LENGTH, MAX_SUBDOMAIN_LENGTH, config_key_faults, label_faults, label_value_faults,
    port_name_faults, qualified_name_faults, rfc1035_label_faults, subdomain_faults,
};

use crate::Random;

/// Characters that `generateName` appends.
pub const GENERATED_SUFFIX_LENGTH: usize = 5;
/// Tries for a generated name that nobody has.
pub const GENERATE_NAME_ATTEMPTS: usize = 8;
/// Longest text of a generated name before its suffix, in bytes.
pub const MAX_GENERATED_BASE_LENGTH: usize = MAX_LABEL_LENGTH - GENERATED_SUFFIX_LENGTH;

/// The alphabet of generated names: no vowels, so that no word appears by chance.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// What a kind allows as `metadata.name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain: most kinds.
    Subdomain,
    /// RFC 1123 label: namespaces.
    Label,
    /// RFC 1035 label: Services, which must not begin with a digit.
    ServiceLabel,
    /// Anything that can stand in a path: Events are written by many hands.
    PathSegment,
    /// An IP address in its one usual form: IPAddress objects.
    Address,
}

impl NameRule {
    /// Why a name is not allowed, in the real server's words; nothing when it is.
    pub fn faults(self, name: &str) -> Vec<String> {
        match self {
            Self::Subdomain => subdomain_faults(name),
            Self::Label => label_faults(name),
            Self::ServiceLabel => rfc1035_label_faults(name),
            Self::PathSegment => path_segment_faults(name),
            Self::Address => address_faults(name),
        }
    }
}

/// A name that begins with `base` and ends with five random characters.
pub fn generate(base: &str, random: &mut dyn Random) -> String {
    let mut end = base.len().min(MAX_GENERATED_BASE_LENGTH);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = base.get(..end).unwrap_or_default().to_owned();
    for _ in 0..GENERATED_SUFFIX_LENGTH {
        let index = random.next_u64() % SUFFIX_ALPHABET.len() as u64;
        name.extend(SUFFIX_ALPHABET.get(index as usize).map(|byte| char::from(*byte)));
    }
    name
}

/// A random uid (RFC 9562, version 4).
pub fn uid(random: &mut dyn Random) -> String {
    let high = random.next_u64();
    let low = random.next_u64();
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        0x8000 | ((low >> 48) & 0x3fff),
        low & 0xffff_ffff_ffff,
    )
}

fn address_faults(name: &str) -> Vec<String> {
    let Ok(address) = name.parse::<std::net::IpAddr>() else {
        return vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()];
    };
    let usual = address.to_string();
    if usual == name { vec![] } else { vec![format!("must be in canonical form ({usual:?})")] }
}

fn path_segment_faults(name: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if matches!(name, "." | "..") {
        faults.push(format!("may not be '{name}'"));
    }
    for character in ['/', '%'] {
        if name.contains(character) {
            faults.push(format!("may not contain '{character}'"));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counter(u64);

    impl Random for Counter {
        fn next_u64(&mut self) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            self.0
        }
    }

    #[test]
    fn generated_names_fit_a_label_and_uids_are_version_four() {
        let mut random = Counter(7);
        let name = generate(&"x".repeat(80), &mut random);
        assert_eq!(name.len(), MAX_LABEL_LENGTH);
        let uid = uid(&mut random);
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes()[14], b'4');
        assert!(matches!(uid.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
    }

    #[test]
    fn each_rule_refuses_what_only_a_wider_one_allows() {
        assert!(NameRule::Subdomain.faults("a.b").is_empty());
        assert_eq!(NameRule::Label.faults("a.b").len(), 1);
        assert!(NameRule::Label.faults("1a").is_empty());
        assert_eq!(NameRule::ServiceLabel.faults("1a").len(), 1);
        assert!(NameRule::PathSegment.faults("Web.17a_b").is_empty());
        assert_eq!(NameRule::PathSegment.faults("a/b").len(), 1);
    }
}
