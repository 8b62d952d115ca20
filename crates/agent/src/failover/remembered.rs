//! What is unreachable, on disk: a new agent leaves out what the one before left out, until it
//! answers (invariant 14).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use model::Unreachable;
use serde::{Deserialize, Serialize};

use crate::install;

/// The file in the run directory.
pub(super) const FILE: &str = "unreachable.json";
/// A larger file in bytes is none of ours.
const BYTES_MAX: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Text {
    nodes: BTreeSet<String>,
    endpoints: BTreeSet<SocketAddr>,
}

/// Nothing, when there is no file or a damaged one: then it is found out anew.
pub(super) fn read(place: &Path) -> Unreachable {
    let read = || -> Option<Text> {
        let mut text = String::new();
        File::open(place).ok()?.take(BYTES_MAX).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    };
    let known = read().map(|Text { nodes, endpoints }| Unreachable { nodes, endpoints });
    known.unwrap_or_default()
}

/// # Errors
/// The file system's.
pub(super) fn write(place: &Path, unreachable: &Unreachable) -> Result<()> {
    let Unreachable { nodes, endpoints } = unreachable.clone();
    let text = serde_json::to_string(&Text { nodes, endpoints })?;
    let directory = place.parent().context("the run directory has no name")?;
    install::replace(directory, place, 0o600, |file| file.write_all(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let directory = std::env::temp_dir().join(format!("flatnet-out-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let place = directory.join(FILE);
        assert!(read(&place).is_empty());
        let endpoints = ["10.244.1.5:80", "[fd00::5]:80"].map(|text| text.parse().expect("one"));
        let out = Unreachable { nodes: ["node2".into()].into(), endpoints: endpoints.into() };
        write(&place, &out).expect("written");
        assert_eq!(read(&place), out);
        for damaged in ["", "{", "{\"nodes\":[1],\"endpoints\":[]}", "{\"nodes\":[]}"] {
            std::fs::write(&place, damaged).expect("written");
            assert!(read(&place).is_empty(), "{damaged}");
        }
        std::fs::remove_dir_all(&directory).expect("removed");
    }
}
