//! What containers are made of: images that were loaded or pulled ([`Store`]), and two that need no
//! registry (`builtin`).

mod archive;
mod builtin;
mod compression;
mod identity;
mod oci;
mod reference;
mod registry;
mod store;
mod tar;
mod unpack;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::sys::signal::Signal;
use pause::Overlay;

pub use archive::load;
pub use identity::Identity;
pub use oci::ImageConfig;
pub use reference::Reference;
pub use registry::{Credentials, Settings, pull};
pub use store::{Image, Store, USE_FILE, Use};

use builtin::{Builtin, Builtins};
use unpack::find_file;

/// The first of the real-time signals, as images and people count them.
const FIRST_REAL_TIME: i32 = 34;

/// What a node's containers are made of.
#[derive(Clone, Debug)]
pub struct Images {
    builtins: Builtins,
    /// Shared by all nodes of the cluster.
    pub store: Store,
}

/// An image that was found for a container.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// As the pod's status has it.
    pub id: String,
    /// What the image says of its containers.
    pub config: ImageConfig,
    origin: Origin,
}

#[derive(Clone, Debug)]
enum Origin {
    Builtin(Builtin),
    Stored(Image),
}

impl Images {
    /// The images of a node, whose own are laid out below `directory`.
    ///
    /// # Errors
    /// The path and the reason.
    pub fn prepare(directory: PathBuf, toolbox: &Path, store: Store) -> Result<Self, String> {
        Ok(Self { builtins: Builtins::prepare(directory, toolbox)?, store })
    }

    /// Finds an image that is here.
    ///
    /// # Errors
    /// The image's configuration cannot be read.
    pub fn find(&self, reference: &Reference) -> Result<Option<Chosen>, String> {
        if let Some(builtin) = Builtin::find(reference) {
            let (id, config) = (format!("flatnet://{}", reference.name()), builtin.config());
            return Ok(Some(Chosen { id, config, origin: Origin::Builtin(builtin) }));
        }
        let Some(image) = self.store.find(reference) else { return Ok(None) };
        self.chosen(image).map(Some)
    }

    /// An image of the store, for a container.
    ///
    /// # Errors
    /// The image's configuration cannot be read.
    pub fn chosen(&self, image: Image) -> Result<Chosen, String> {
        let config = self.store.config(&image)?;
        let id = image.repository_digests.first().cloned().unwrap_or_else(|| image.id.to_string());
        Ok(Chosen { id, config, origin: Origin::Stored(image) })
    }

    /// The overlays of a new container, whose written layers go below `layers`. From now on the
    /// image is in use until `layers` are removed.
    ///
    /// # Errors
    /// The path and the reason.
    pub fn overlays(&self, chosen: &Chosen, layers: &Path) -> Result<Vec<Overlay>, String> {
        match &chosen.origin {
            Origin::Builtin(builtin) => self.builtins.overlays(*builtin, layers),
            Origin::Stored(image) => {
                let stop_signal = chosen.config.stop_signal.clone();
                let usage = Use { id: image.id.clone(), stop_signal };
                self.store.begin_use(image, &usage, layers)?;
                Ok(vec![builtin::overlay("/", self.store.layers(image), layers)?])
            }
        }
    }

    /// As whom a container runs that shall run as `user`, in the form of an image's `User`.
    ///
    /// # Errors
    /// The image has no such user or group.
    pub fn identity(&self, chosen: &Chosen, user: &str) -> Result<Identity, String> {
        match &chosen.origin {
            Origin::Builtin(_) => {
                let mut found = identity::find(user, "", "")?;
                found.home = if found.user == 0 { "/root" } else { "/" }.to_owned();
                Ok(found)
            }
            Origin::Stored(image) => {
                let layers = self.store.layers(image);
                let text = |path| {
                    let mut text = Vec::new();
                    if let Some(file) = find_file(&layers, path) {
                        // One that cannot be read names nobody.
                        let _ = file.take(identity::MAX_FILE_BYTES).read_to_end(&mut text);
                    }
                    String::from_utf8_lossy(&text).into_owned()
                };
                identity::find(user, &text("etc/passwd"), &text("etc/group"))
            }
        }
    }
}

impl Chosen {
    /// An image whose containers run as `user`.
    #[cfg(test)]
    pub fn for_test(user: &str) -> Self {
        let config = ImageConfig { user: user.to_owned(), ..ImageConfig::default() };
        Self { id: String::new(), config, origin: Origin::Builtin(Builtin::Host) }
    }

    /// The number of the image's user; `None` where it is given by name.
    pub fn user_number(&self) -> Option<u32> {
        identity::number(&self.config.user)
    }
}

/// The signal of an image's `StopSignal`: `SIGQUIT`, `QUIT`, `3` or `SIGRTMIN+3`. SIGTERM where it
/// names none.
pub fn stop_signal(text: &str) -> i32 {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    if let Ok(number) = name.parse::<i32>() {
        return if (1..=64).contains(&number) { number } else { libc::SIGTERM };
    }
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let offset = rest.strip_prefix('+').map_or(Some(0), |text| text.parse::<i32>().ok());
        return offset
            .filter(|offset| (0..=30).contains(offset))
            .map_or(libc::SIGTERM, |offset| FIRST_REAL_TIME + offset);
    }
    Signal::from_str(&format!("SIG{name}")).map_or(libc::SIGTERM, |signal| signal as i32)
}

#[cfg(test)]
pub mod tests;
