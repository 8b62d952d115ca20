//! [`KeyStore`]: a node's WireGuard keys on its disk.
//!
//! A directory of mode 0700 holds files `key-1`, `key-2`, … of mode 0600, each a private key as
//! `wg genkey` writes it. The highest number is the newest.
//!
//! Rotation: [`KeyStore::rotate`] makes a key, the agent publishes it on its Node, and every node,
//! this one too, changes when it reads the Node (`plan::network::WireguardEnd`). Until all have,
//! packets between this node and those that have not are lost, never sent in plain: one link has
//! one key, and sessions end with it. That is the time of a watch event and of a handshake. Then
//! [`KeyStore::retire_others`] removes the old one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use model::WireguardKey;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;
/// Bytes of a key in base64.
const KEY_TEXT_BYTES: usize = 44;
/// Keys that are kept at the same time: more than one only while a new one is being published.
const KEYS_MAX: usize = 8;
const FILE_PREFIX: &str = "key-";
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A private key; its bytes are overwritten when it goes. Never printed.
pub type PrivateKey = Zeroizing<[u8; KEY_BYTES]>;

/// The keys of a node.
#[derive(Clone, Debug)]
pub struct KeyStore {
    directory: PathBuf,
}

/// Why a key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The disk refused.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Others can read or write what only root may.
    #[error("{} has mode {mode:04o} and the owner {owner}: whoever can read it reads all traffic between nodes; give it to root with chmod go= and chown root, or remove it, so that a new key is made", path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its owner.
        owner: u32,
    },
    /// A file holds something else.
    #[error("{} holds no WireGuard key: remove it, so that a new key is made", .0.display())]
    Malformed(PathBuf),
    /// The Node publishes a key that is not this node's.
    #[error("the key {public_key} that the Node publishes is not in {}: the agent publishes this node's own when it starts", directory.display())]
    Unknown {
        /// What is published.
        public_key: WireguardKey,
        /// Where this node's keys are.
        directory: PathBuf,
    },
    /// Too many.
    #[error("{} holds {KEYS_MAX} keys already: remove those that are not published", .0.display())]
    TooMany(PathBuf),
    /// The system gives no random numbers.
    #[error("cannot make a WireGuard key: the system gives no random numbers: {0}")]
    Random(String),
}

impl KeyStore {
    /// The keys in a directory, such as `model::layout::WIREGUARD_KEY_DIRECTORY`. It is made with
    /// the first key.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The newest key, made when there is none: what the agent publishes.
    ///
    /// # Errors
    /// When a key cannot be read or made, and when others could have read it.
    pub fn load_or_make(&self) -> Result<WireguardKey, KeyError> {
        match self.files()?.last() {
            Some((_, path)) => Ok(public(&read_key(path)?)),
            None => self.make(1),
        }
    }

    /// Makes a new key, from now on the newest.
    ///
    /// # Errors
    /// As [`KeyStore::load_or_make`]; when there are too many already.
    pub fn rotate(&self) -> Result<WireguardKey, KeyError> {
        let files = self.files()?;
        if files.len() >= KEYS_MAX {
            return Err(KeyError::TooMany(self.directory.clone()));
        }
        self.make(files.last().map_or(0, |(number, _)| *number).saturating_add(1))
    }

    /// Removes all keys but one: after all nodes know that one.
    ///
    /// # Errors
    /// When the one is not there (then nothing is removed), or the disk refuses.
    pub fn retire_others(&self, kept: &WireguardKey) -> Result<(), KeyError> {
        self.private(kept)?;
        for (_, path) in self.files()? {
            if public(&read_key(&path)?) != *kept {
                fs::remove_file(&path).map_err(|error| failed("remove", &path, error))?;
            }
        }
        Ok(())
    }

    /// The private key of a public one.
    ///
    /// # Errors
    /// When it is not this node's, or cannot be read.
    pub fn private(&self, public_key: &WireguardKey) -> Result<PrivateKey, KeyError> {
        for (_, path) in self.files()?.into_iter().rev() {
            let private = read_key(&path)?;
            if public(&private) == *public_key {
                return Ok(private);
            }
        }
        let directory = self.directory.clone();
        Err(KeyError::Unknown { public_key: *public_key, directory })
    }

    /// The files of keys by number; none when the directory is not there yet.
    fn files(&self) -> Result<Vec<(u32, PathBuf)>, KeyError> {
        let directory = &self.directory;
        let action = "list";
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            Err(error) => return Err(failed(action, directory, error)),
        };
        let metadata = fs::symlink_metadata(directory);
        check(directory, &metadata.map_err(|error| failed(action, directory, error))?)?;
        let mut files = Vec::new();
        for entry in entries {
            let name = entry.map_err(|error| failed(action, directory, error))?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(FILE_PREFIX));
            let Some(number) = number.and_then(|text| text.parse().ok()) else { continue };
            files.push((number, directory.join(name)));
        }
        files.sort();
        Ok(files)
    }

    /// Makes a key whole or not at all: written aside, made durable, then named.
    fn make(&self, number: u32) -> Result<WireguardKey, KeyError> {
        let mut private = PrivateKey::default();
        getrandom::fill(private.as_mut()).map_err(|error| KeyError::Random(error.to_string()))?;
        let mut builder = DirBuilder::new();
        let directory = &self.directory;
        let made = builder.recursive(true).mode(DIRECTORY_MODE).create(directory);
        made.map_err(|error| failed("make", directory, error))?;
        let path = directory.join(format!("{FILE_PREFIX}{number}"));
        let aside = directory.join(format!("new-{number}"));
        write_key(&aside, &private)
            .and_then(|()| fs::hard_link(&aside, &path))
            .and_then(|()| fs::remove_file(&aside))
            .and_then(|()| File::open(directory)?.sync_all())
            .map_err(|error| failed("write", &path, error))?;
        Ok(public(&private))
    }
}

fn write_key(path: &Path, private: &PrivateKey) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {} // absent, or what a crash left
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
    let text = Zeroizing::new(BASE64.encode(private.as_slice()) + "\n");
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn read_key(path: &Path) -> Result<PrivateKey, KeyError> {
    let refused = |error| failed("read", path, error);
    let options = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
    let file = options.map_err(refused)?;
    check(path, &file.metadata().map_err(refused)?)?;
    let mut text = Zeroizing::new(Vec::with_capacity(KEY_TEXT_BYTES + 2));
    file.take(KEY_TEXT_BYTES as u64 + 2).read_to_end(&mut text).map_err(refused)?;
    let malformed = || KeyError::Malformed(path.to_owned());
    let bytes = Zeroizing::new(BASE64.decode(text.trim_ascii()).map_err(|_| malformed())?);
    let bytes: [u8; KEY_BYTES] = bytes.as_slice().try_into().map_err(|_| malformed())?;
    Ok(PrivateKey::new(bytes))
}

/// Whether only its owner, who is this program's user, can use a file or directory.
fn check(path: &Path, metadata: &fs::Metadata) -> Result<(), KeyError> {
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    if mode & 0o077 == 0 && owner == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    Err(KeyError::Exposed { path: path.to_owned(), mode, owner })
}

fn public(private: &PrivateKey) -> WireguardKey {
    WireguardKey(PublicKey::from(&StaticSecret::from(**private)).to_bytes())
}

fn failed(action: &'static str, path: &Path, error: io::Error) -> KeyError {
    KeyError::Io { action, path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let name = format!("flatnet-keys-{name}-{}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_public_key_is_the_one_that_curve25519_gives() {
        // RFC 7748, section 6.1: Alice's keys.
        let hex = |text: &str| {
            let byte = |index: usize| u8::from_str_radix(&text[2 * index..2 * index + 2], 16);
            std::array::from_fn(|index| byte(index).expect("hex"))
        };
        let private = hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
        let expected = hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
        assert_eq!(public(&PrivateKey::new(private)), WireguardKey(expected));
    }

    #[test]
    fn a_key_stays_over_restarts_and_is_for_its_owner_alone() {
        let scratch = Scratch::new("stays");
        let store = KeyStore::at(scratch.0.join("wireguard"));
        let key = store.load_or_make().expect("a key");
        assert_eq!(KeyStore::at(scratch.0.join("wireguard")).load_or_make().expect("it"), key);
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o7777;
        assert_eq!(mode(&store.directory), 0o700);
        assert_eq!(mode(&store.directory.join("key-1")), 0o600);
        assert_eq!(public(&store.private(&key).expect("its private key")), key);
    }

    #[test]
    fn both_keys_are_there_until_the_old_one_is_retired() {
        let scratch = Scratch::new("rotate");
        let store = KeyStore::at(&scratch.0);
        let old = store.load_or_make().expect("a key");
        let new = store.rotate().expect("another");
        assert_ne!(old, new);
        assert_eq!(store.load_or_make().expect("the newest"), new);
        assert!(store.private(&old).is_ok() && store.private(&new).is_ok());
        store.retire_others(&new).expect("retired");
        assert!(matches!(store.private(&old), Err(KeyError::Unknown { .. })));
        assert!(matches!(store.retire_others(&old), Err(KeyError::Unknown { .. })));
        assert_eq!(store.load_or_make().expect("still"), new, "nothing was removed for a stranger");
        let more = std::iter::repeat_with(|| store.rotate()).take(KEYS_MAX);
        assert!(more.last().expect("many").is_err(), "keys are bounded");
    }

    #[test]
    fn what_others_can_read_or_wrote_is_refused() {
        let scratch = Scratch::new("exposed");
        let store = KeyStore::at(&scratch.0);
        let key = store.load_or_make().expect("a key");
        let file = scratch.0.join("key-1");
        let set_mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
        };
        for (path, right, wrong) in [(&file, 0o600, 0o640), (&scratch.0, 0o700, 0o755)] {
            set_mode(path, wrong);
            assert!(matches!(store.private(&key), Err(KeyError::Exposed { .. })), "{wrong:o}");
            assert!(matches!(store.load_or_make(), Err(KeyError::Exposed { .. })), "{wrong:o}");
            set_mode(path, right);
        }
        for text in ["", "AAAA\n", &"A".repeat(10_000)] {
            fs::write(&file, text).expect("written");
            assert!(matches!(store.load_or_make(), Err(KeyError::Malformed(_))), "{text:.9}");
        }
        fs::remove_file(&file).expect("removed");
        std::os::unix::fs::symlink("/etc/hostname", &file).expect("a link");
        assert!(matches!(store.load_or_make(), Err(KeyError::Io { .. })), "links are not followed");
    }

    #[test]
    fn what_a_crash_left_aside_is_no_hindrance() {
        let scratch = Scratch::new("crash");
        DirBuilder::new().mode(0o700).create(&scratch.0).expect("made");
        fs::write(scratch.0.join("new-1"), "half").expect("written");
        assert!(KeyStore::at(&scratch.0).load_or_make().is_ok());
        assert!(!scratch.0.join("new-1").exists());
    }
}
