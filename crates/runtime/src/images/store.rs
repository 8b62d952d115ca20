//! The images of a cluster on disk, one copy for all its nodes: configurations by their digest,
//! layers unpacked by the digest of themselves and all below them, and one document that lists the
//! images. Whoever changes that document, or takes layers away, holds the lock.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{Flock, FlockArg};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::compression::plain;
use super::oci::{ImageConfig, ImageDocument};
use super::reference::{Digest, Reference, Version};
use super::tar::Archive;
use super::unpack;
use crate::disk;

/// Most images that are kept.
const MAX_IMAGES: usize = 10_000;
/// What a container's layers hold beside what it writes: which image it was made of.
pub const USE_FILE: &str = "image.json";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The images of a cluster.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

/// One image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// The digest of its configuration.
    pub id: Digest,
    /// Whole names by which it is found.
    pub names: BTreeSet<String>,
    /// `REPOSITORY@DIGEST` of its manifest, where it came from a registry.
    pub repository_digests: BTreeSet<String>,
    /// Its layers, the topmost first, by what names their directories.
    pub layers: Vec<Digest>,
    /// Bytes of the files of all layers.
    pub size_bytes: u64,
    /// Whether a registry has it as well, so that it may be removed when the disk is full.
    pub pulled: bool,
    /// When it was last found for a container, seconds since the epoch.
    pub used_at_s: i64,
}

/// What a container was made of; kept beside its layers while these are in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Use {
    /// The image.
    pub id: Digest,
    /// What ends it; empty where the image does not say.
    pub stop_signal: String,
}

/// The list of images.
#[derive(Default, Serialize, Deserialize)]
struct Index {
    images: Vec<Image>,
}

/// A place for what is under way; what is left of it goes with it.
pub struct Scratch {
    path: PathBuf,
}

/// A layer's digest, as it was read.
pub struct Unpacked {
    /// Of the archive as it came, compressed or not.
    pub digest: Digest,
    /// Names the layer's directory.
    pub chain: Digest,
}

impl Store {
    /// The images below `directory`. Removes what processes that were killed have left half done.
    ///
    /// # Errors
    /// The path and the reason.
    pub fn open(directory: PathBuf) -> Result<Self, String> {
        let store = Self { directory };
        for name in ["configs", "layers", "incoming", "users"] {
            disk::make_private(&store.directory.join(name))?;
        }
        for entry in fs::read_dir(store.directory.join("incoming")).into_iter().flatten().flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            let process = name.split('-').next().unwrap_or_default().to_owned();
            if !Path::new("/proc").join(process).exists() {
                disk::remove_tree(&entry.path())?;
            }
        }
        Ok(store)
    }

    /// The directory of all of it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Says that containers below a node's `state` directory may use images.
    ///
    /// # Errors
    /// The path and the reason.
    pub fn register(&self, node: &str, state: &Path) -> Result<(), String> {
        disk::write_json(&self.directory.join("users").join(node), &state)
    }

    /// All images.
    pub fn list(&self) -> Vec<Image> {
        self.index().images
    }

    /// The image of a name.
    pub fn find(&self, reference: &Reference) -> Option<Image> {
        self.index().images.into_iter().find(|image| image.has(reference))
    }

    /// What an image says of itself.
    ///
    /// # Errors
    /// The file and the reason.
    pub fn config(&self, image: &Image) -> Result<ImageConfig, String> {
        let path = self.directory.join("configs").join(image.id.digits());
        let text =
            fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Ok(ImageDocument::parse(&text)?.config)
    }

    /// The directories of an image's layers, the topmost first.
    pub fn layers(&self, image: &Image) -> Vec<PathBuf> {
        image.layers.iter().map(|chain| self.layer(chain)).collect()
    }

    /// Marks an image as used by a container whose layers are at `layers`.
    ///
    /// # Errors
    /// The image was removed meanwhile, or the disk is full.
    pub fn begin_use(&self, image: &Image, usage: &Use, layers: &Path) -> Result<(), String> {
        let _lock = self.lock()?;
        let mut index = self.index();
        let known = index.images.iter_mut().find(|known| known.id == image.id);
        let known = known.ok_or_else(|| format!("image {} was removed meanwhile", image.id))?;
        known.used_at_s = crate::context::now().seconds();
        disk::write_json(&layers.join(USE_FILE), usage)?;
        self.write(&index)
    }

    /// A new place for what is under way.
    ///
    /// # Errors
    /// The path and the reason.
    pub fn scratch(&self) -> Result<Scratch, String> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", std::process::id());
        let path = self.directory.join("incoming").join(name);
        disk::remove_tree(&path)?;
        disk::make_private(&path)?;
        Ok(Scratch { path })
    }

    /// Unpacks a layer above others unless it is there, and says what was read.
    ///
    /// # Errors
    /// What is wrong with the layer; its content not being `diff_id` is the last of it.
    pub fn add_layer(
        &self,
        content: impl Read,
        diff_id: &Digest,
        below: &[Digest],
    ) -> Result<Unpacked, String> {
        let failed = |error: io::Error| format!("cannot read the layer {diff_id}: {error}");
        let chain = chain(below.first(), diff_id);
        let mut outer = Hashing::new(content);
        let scratch = self.scratch()?;
        let directory = scratch.path.join("layer");
        disk::make_private(&directory)?;
        let mut inner = Hashing::new(plain(&mut outer).map_err(failed)?);
        let mut archive = Archive::new(&mut inner);
        let below: Vec<PathBuf> = below.iter().map(|chain| self.layer(chain)).collect();
        let bytes = unpack::unpack(&mut archive, &directory, &below)
            .map_err(|error| format!("cannot unpack the layer {diff_id}: {error}"))?;
        // Behind the archive's end is padding, which the digests cover.
        io::copy(&mut inner, &mut io::sink()).map_err(failed)?;
        let found = inner.finish();
        if found != *diff_id {
            return Err(format!("the layer {diff_id} has other content: its digest is {found}"));
        }
        io::copy(&mut outer, &mut io::sink()).map_err(failed)?;
        let digest = outer.finish();
        let size = scratch.path.join("size");
        disk::write_json(&size, &bytes)?;
        let place = self.layer(&chain);
        let _lock = self.lock()?;
        if !place.exists() {
            let rename = fs::rename(&size, self.layer_size(&chain))
                .and_then(|()| fs::rename(&directory, &place));
            rename.map_err(|error| format!("cannot keep the layer {diff_id}: {error}"))?;
        }
        Ok(Unpacked { digest, chain })
    }

    /// Whether a layer is there, and how it is named.
    pub fn has_layer(&self, diff_id: &Digest, below: &[Digest]) -> Option<Digest> {
        let chain = chain(below.first(), diff_id);
        self.layer(&chain).exists().then_some(chain)
    }

    /// Lists an image whose layers are there, under a name that no other has from now on.
    ///
    /// # Errors
    /// A layer was removed meanwhile, or the disk is full.
    pub fn add_image(
        &self,
        config: &[u8],
        layers: Vec<Digest>,
        names: &[Reference],
        from_registry: Option<String>,
    ) -> Result<Image, String> {
        let id = digest(config);
        let _lock = self.lock()?;
        let mut size_bytes = 0_u64;
        for chain in &layers {
            let size = disk::read_json::<u64>(&self.layer_size(chain));
            if !self.layer(chain).exists() {
                return Err(format!("the layer {chain} was removed meanwhile: try again"));
            }
            size_bytes = size_bytes.saturating_add(size.unwrap_or(0));
        }
        disk::write(&self.directory.join("configs").join(id.digits()), config, 0o600)?;
        let mut index = self.index();
        let names: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
        for other in &mut index.images {
            other.names.retain(|name| !names.contains(name));
        }
        let known = index.images.iter().position(|image| image.id == id);
        let mut image = match known {
            Some(known) => index.images.remove(known),
            None => Image {
                id,
                names: BTreeSet::new(),
                repository_digests: BTreeSet::new(),
                layers,
                size_bytes,
                pulled: true,
                used_at_s: 0,
            },
        };
        image.pulled &= from_registry.is_some();
        image.names.extend(names);
        image.repository_digests.extend(from_registry);
        image.used_at_s = crate::context::now().seconds();
        index.images.push(image.clone());
        if index.images.len() > MAX_IMAGES {
            return Err(format!("there are more than {MAX_IMAGES} images: remove some"));
        }
        self.write(&index)?;
        Ok(image)
    }

    /// Removes a name, and with its last name the image, unless a container uses it.
    ///
    /// # Errors
    /// There is no such image, or which container uses it.
    pub fn remove(&self, text: &str) -> Result<Image, String> {
        let _lock = self.lock()?;
        let mut index = self.index();
        let reference = Reference::parse(text);
        let found = index.images.iter().position(|image| match &reference {
            _ if image.id.to_string() == text || image.id.digits() == text => true,
            Ok(reference) => image.has(reference),
            Err(_) => false,
        });
        let found = found.ok_or_else(|| format!("there is no image {text:?}"))?;
        let image = index.images[found].clone();
        let whole = reference.map(|reference| reference.to_string()).unwrap_or_default();
        let keeps_names = image.names.len() > 1 && image.names.contains(&whole);
        if keeps_names {
            index.images[found].names.remove(&whole);
            self.write(&index)?;
            return Ok(image);
        }
        if let Some(container) = self.uses().into_iter().find(|(_, id)| *id == image.id) {
            return Err(format!(
                "image {text:?} is in use: {} was made of it",
                container.0.display()
            ));
        }
        self.forget(&mut index, &image.id)?;
        Ok(image)
    }

    /// Removes images of registries that no container uses, the one first that was used longest
    /// ago, until `is_enough`. Those used after `newest_s` stay. Returns what was removed.
    ///
    /// # Errors
    /// The path and the reason.
    pub fn collect(
        &self,
        newest_s: i64,
        is_enough: impl Fn() -> bool,
    ) -> Result<Vec<Image>, String> {
        let _lock = self.lock()?;
        let used: BTreeSet<Digest> = self.uses().into_iter().map(|(_, id)| id).collect();
        let mut index = self.index();
        let mut candidates: Vec<Image> = index
            .images
            .iter()
            .filter(|image| {
                image.pulled && image.used_at_s <= newest_s && !used.contains(&image.id)
            })
            .cloned()
            .collect();
        candidates.sort_by_key(|image| image.used_at_s);
        let mut removed = Vec::new();
        for image in candidates {
            if is_enough() {
                break;
            }
            self.forget(&mut index, &image.id)?;
            removed.push(image);
        }
        Ok(removed)
    }

    /// Takes an image off the list, then what no other image has. The lock is held.
    fn forget(&self, index: &mut Index, id: &Digest) -> Result<(), String> {
        index.images.retain(|image| image.id != *id);
        self.write(index)?;
        let _ = fs::remove_file(self.directory.join("configs").join(id.digits()));
        let kept: BTreeSet<String> = index
            .images
            .iter()
            .flat_map(|image| image.layers.iter().map(|chain| chain.digits().to_owned()))
            .collect();
        for entry in fs::read_dir(self.directory.join("layers")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let chain = name.trim_end_matches(SIZE_SUFFIX);
            if kept.contains(chain) {
                continue;
            }
            if name.ends_with(SIZE_SUFFIX) {
                let _ = fs::remove_file(entry.path());
            } else {
                disk::remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    /// The containers of all nodes that are made of images, each with the image.
    fn uses(&self) -> Vec<(PathBuf, Digest)> {
        let entries = |path: &Path| -> Vec<PathBuf> {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect()
        };
        let mut uses = Vec::new();
        for user in entries(&self.directory.join("users")) {
            let Some(state) = disk::read_json::<PathBuf>(&user) else { continue };
            let pods = entries(&state.join("pods"));
            let containers = pods.iter().flat_map(|pod| entries(&pod.join("containers")));
            for start in containers.flat_map(|container| entries(&container)) {
                if let Some(usage) = disk::read_json::<Use>(&start.join(USE_FILE)) {
                    uses.push((start, usage.id));
                }
            }
        }
        uses
    }

    fn layer(&self, chain: &Digest) -> PathBuf {
        self.directory.join("layers").join(chain.digits())
    }

    fn layer_size(&self, chain: &Digest) -> PathBuf {
        self.directory.join("layers").join(format!("{}{SIZE_SUFFIX}", chain.digits()))
    }

    fn index(&self) -> Index {
        disk::read_json(&self.directory.join("index.json")).unwrap_or_default()
    }

    fn write(&self, index: &Index) -> Result<(), String> {
        disk::write_json(&self.directory.join("index.json"), index)
    }

    fn lock(&self) -> Result<Flock<File>, String> {
        let path = self.directory.join("lock");
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let failed =
            |error: &dyn std::fmt::Display| format!("cannot lock {}: {error}", path.display());
        let file = file.map_err(|error| failed(&error))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| failed(&error))
    }
}

/// Beside a layer's directory: how many bytes its files have.
const SIZE_SUFFIX: &str = ".size";

impl Image {
    fn has(&self, reference: &Reference) -> bool {
        let whole = reference.to_string();
        match &reference.version {
            Version::Tag(_) => self.names.contains(&whole),
            Version::Digest(_) => {
                self.names.contains(&whole) || self.repository_digests.contains(&whole)
            }
        }
    }
}

impl Scratch {
    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The digest of a document.
pub fn digest(content: &[u8]) -> Digest {
    Digest::of(ring::digest::digest(&SHA256, content).as_ref())
}

/// Names a layer together with all below it (the OCI's chain ID): what unpacking makes of a layer
/// depends on links and directories below.
fn chain(below: Option<&Digest>, diff_id: &Digest) -> Digest {
    match below {
        None => diff_id.clone(),
        Some(below) => digest(format!("{below} {diff_id}").as_bytes()),
    }
}

/// Hashes what is read.
pub struct Hashing<R> {
    reader: R,
    context: Context,
}

impl<R: Read> Hashing<R> {
    /// Hashes what is read from `reader`.
    pub fn new(reader: R) -> Self {
        Self { reader, context: Context::new(&SHA256) }
    }

    /// The digest of all that was read.
    pub fn finish(self) -> Digest {
        Digest::of(self.context.finish().as_ref())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.context.update(&buffer[..count]);
        Ok(count)
    }
}
