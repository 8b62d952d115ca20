//! Images from files: OCI layouts, as a directory or in an archive, and what `docker save` writes.
//! Names inside an archive are looked up in a list of its entries, never on this machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::compression::{is_compressed, plain};
use super::oci::{Descriptor, ImageDocument, MAX_DOCUMENT_BYTES, Manifest};
use super::reference::{Digest, Reference};
use super::store::{Image, Store, digest};
use super::tar::{Archive, Kind};

/// Most entries of an archive of images.
const MAX_ENTRIES: usize = 100_000;
/// Most images of an archive.
const MAX_IMAGES: usize = 1_000;
/// Most steps from an index to a manifest, and from a link to its file.
const MAX_STEPS: usize = 8;
/// Annotations that name an image: containerd's whole name, the OCI's name or tag.
const NAME_ANNOTATIONS: [&str; 2] =
    ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// Loads all images of a file or directory. `name` is given to an image that has none.
///
/// # Errors
/// What the file lacks, or what is wrong with it.
pub fn load(store: &Store, path: &Path, name: Option<&Reference>) -> Result<Vec<Image>, String> {
    let scratch = store.scratch()?;
    let source = Source::open(path, scratch.path())?;
    let found = if source.has("manifest.json") {
        saved(&source)?
    } else if source.has("index.json") {
        let index: Manifest = source.json("index.json")?;
        laid_out(&source, &index.manifests, MAX_STEPS)?
    } else {
        return Err(format!(
            "{} is no image: it has neither index.json (an OCI layout) nor manifest.json (docker \
             save)",
            path.display()
        ));
    };
    if found.is_empty() || found.len() > MAX_IMAGES {
        let count = found.len();
        return Err(format!("{} has {count} images, 1 to {MAX_IMAGES} are read", path.display()));
    }
    if name.is_some() && found.len() > 1 {
        return Err(format!(
            "{} has {} images: one name is not enough",
            path.display(),
            found.len()
        ));
    }
    found.into_iter().map(|one| add(store, &source, one, name)).collect()
}

/// An image of an archive, by the names of its parts there.
struct Saved {
    names: Vec<String>,
    config: Part,
    layers: Vec<Part>,
}

struct Part {
    path: String,
    /// Where the archive says it.
    digest: Option<Digest>,
}

fn add(
    store: &Store,
    source: &Source,
    saved: Saved,
    name: Option<&Reference>,
) -> Result<Image, String> {
    let config = source.document(&saved.config)?;
    let document = ImageDocument::parse(&config)?;
    let mut names = Vec::new();
    for name in &saved.names {
        names
            .push(Reference::parse(name).map_err(|error| format!("image name {name:?}: {error}"))?);
    }
    names.extend(name.cloned());
    if names.is_empty() {
        return Err("the image has no name: give it one by --image-name".into());
    }
    let diff_ids = &document.rootfs.diff_ids;
    if diff_ids.len() != saved.layers.len() {
        let (wanted, found) = (diff_ids.len(), saved.layers.len());
        return Err(format!("the image's configuration has {wanted} layers, its manifest {found}"));
    }
    let mut layers: Vec<Digest> = Vec::new();
    for (part, diff_id) in saved.layers.iter().zip(diff_ids) {
        let chain = match store.has_layer(diff_id, &layers) {
            Some(chain) => chain,
            None => {
                let unpacked = store.add_layer(source.read(&part.path)?, diff_id, &layers)?;
                if part.digest.as_ref().is_some_and(|digest| *digest != unpacked.digest) {
                    return Err(format!("{} has the digest {}", part.path, unpacked.digest));
                }
                unpacked.chain
            }
        };
        layers.insert(0, chain);
    }
    store.add_image(&config, layers, &names, None)
}

/// What `docker save` writes.
fn saved(source: &Source) -> Result<Vec<Saved>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Row {
        config: String,
        #[serde(default, deserialize_with = "model::meta::null_as_default")]
        repo_tags: Vec<String>,
        #[serde(default, deserialize_with = "model::meta::null_as_default")]
        layers: Vec<String>,
    }
    let rows: Vec<Row> = source.json("manifest.json")?;
    let part = |path: String| Part { path, digest: None };
    let image = |row: Row| Saved {
        names: row.repo_tags,
        config: part(row.config),
        layers: row.layers.into_iter().map(part).collect(),
    };
    Ok(rows.into_iter().map(image).collect())
}

fn laid_out(
    source: &Source,
    descriptors: &[Descriptor],
    steps: usize,
) -> Result<Vec<Saved>, String> {
    let mut images: Vec<Saved> = Vec::new();
    for descriptor in descriptors.iter().take(MAX_IMAGES) {
        let text = source.document(&blob(descriptor))?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|error| format!("the manifest {} is wrong: {error}", descriptor.digest))?;
        let names = NAME_ANNOTATIONS.iter().filter_map(|name| descriptor.annotations.get(*name));
        let names: Vec<String> = names.take(1).filter(|name| is_whole(name)).cloned().collect();
        if let Some(config) = &manifest.config {
            let layers = manifest.layers.iter().map(blob).collect();
            images.push(Saved { names, config: blob(config), layers });
        } else if steps > 0 {
            let chosen = [manifest.for_this_machine()?.clone()];
            for mut image in laid_out(source, &chosen, steps - 1)? {
                image.names.extend(names.clone());
                images.push(image);
            }
        } else {
            return Err("indexes of the image point to each other without end".into());
        }
    }
    Ok(images)
}

/// A tag alone names nothing.
fn is_whole(name: &str) -> bool {
    name.contains(['/', ':']) && Reference::parse(name).is_ok()
}

fn blob(descriptor: &Descriptor) -> Part {
    let path = format!("blobs/sha256/{}", descriptor.digest.digits());
    Part { path, digest: Some(descriptor.digest.clone()) }
}

/// The files of a layout or archive.
enum Source {
    Directory(PathBuf),
    Archive { path: PathBuf, entries: BTreeMap<String, Place> },
}

/// Where an entry's content is.
enum Place {
    At { offset: u64, size: u64 },
    SameAs(String),
}

impl Source {
    fn open(path: &Path, scratch: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| format!("cannot read {}: {error}", path.display());
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let mut file = File::open(path).map_err(failed)?;
        let mut first = [0; 4];
        let is_plain = file.read_exact(&mut first).is_ok() && !is_compressed(&first);
        file.rewind().map_err(failed)?;
        let path = if is_plain {
            path.to_owned()
        } else {
            // Entries are looked up in any order: for that the archive must lie there plain.
            let copy = scratch.join("archive.tar");
            let mut plain = plain(file).map_err(failed)?;
            let mut target = File::create(&copy).map_err(failed)?;
            io::copy(&mut plain, &mut target).map_err(failed)?;
            copy
        };
        let entries = list(File::open(&path).map_err(failed)?).map_err(failed)?;
        Ok(Self::Archive { path, entries })
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(path) => path.join(name).is_file(),
            Self::Archive { entries, .. } => entries.contains_key(name),
        }
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, String> {
        let text = self.document(&Part { path: name.to_owned(), digest: None })?;
        serde_json::from_slice(&text).map_err(|error| format!("{name} is wrong: {error}"))
    }

    fn document(&self, part: &Part) -> Result<Vec<u8>, String> {
        let mut text = Vec::new();
        let mut reader = self.read(&part.path)?.take(MAX_DOCUMENT_BYTES + 1);
        reader
            .read_to_end(&mut text)
            .map_err(|error| format!("cannot read {}: {error}", part.path))?;
        if text.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(format!("{} has more than {MAX_DOCUMENT_BYTES} bytes", part.path));
        }
        match &part.digest {
            Some(wanted) if *wanted != digest(&text) => {
                Err(format!("{} has the digest {}", part.path, digest(&text)))
            }
            _ => Ok(text),
        }
    }

    fn read(&self, name: &str) -> Result<Box<dyn Read>, String> {
        let none = || format!("{name} is not there");
        match self {
            Self::Directory(path) => {
                let parts: Vec<&str> = name.split('/').collect();
                if parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
                    return Err(format!("{name:?} leads out of the layout"));
                }
                let file = path.join(name);
                let file = File::open(&file)
                    .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
                Ok(Box::new(file))
            }
            Self::Archive { path, entries } => {
                let mut place = entries.get(name);
                for _ in 0..MAX_STEPS {
                    match place.ok_or_else(none)? {
                        Place::SameAs(other) => place = entries.get(other),
                        Place::At { offset, size } => {
                            let failed = |error: io::Error| format!("cannot read {name}: {error}");
                            let mut file = File::open(path).map_err(failed)?;
                            file.seek(SeekFrom::Start(*offset)).map_err(failed)?;
                            return Ok(Box::new(file.take(*size)));
                        }
                    }
                }
                Err(format!("{name} is a link without end"))
            }
        }
    }
}

fn list(file: File) -> io::Result<BTreeMap<String, Place>> {
    let mut entries = BTreeMap::new();
    let mut archive = Archive::new(io::BufReader::new(file));
    while let Some(entry) = archive.next()? {
        let Some(name) = normal("", &entry.path) else { continue };
        let place = match &entry.kind {
            Kind::File => Place::At { offset: entry.offset, size: entry.size },
            // Older `docker save` has a layer once, and links to it.
            Kind::Symlink(target) => {
                let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                match normal(parent, target) {
                    Some(target) => Place::SameAs(target),
                    None => continue,
                }
            }
            Kind::Link(target) => match normal("", target) {
                Some(target) => Place::SameAs(target),
                None => continue,
            },
            Kind::Directory | Kind::Fifo | Kind::Device => continue,
        };
        entries.insert(name, place);
        if entries.len() > MAX_ENTRIES {
            return Err(io::Error::other(format!("it has more than {MAX_ENTRIES} entries")));
        }
    }
    Ok(entries)
}

/// A path without `.` and `..`; `None` for one that leads out of the archive, or is no text.
fn normal(parent: &str, path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let mut parts: Vec<&str> = parent.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests;
