//! Keeps images from filling the disk: those of registries that no container uses go, before
//! anything else would have to. Images that were loaded stay: nobody could get them again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::statvfs::statvfs;

use crate::context::{Context, now};

/// Time between two looks, seconds (the kubelet's).
const PERIOD_S: u64 = 300;
/// From this part of the disk in use on, images are removed, percent (the kubelet's).
const HIGH_PERCENT: u64 = 85;
/// Down to this part, percent (the kubelet's).
const LOW_PERCENT: u64 = 80;
/// An image that was used this short ago stays, seconds (the kubelet's).
const MIN_AGE_S: i64 = 120;

/// Looks from time to time. Never ends.
pub async fn keep_room(context: Arc<Context>) {
    loop {
        let context = context.clone();
        // Removing is slow work on the disk.
        let looked = tokio::task::spawn_blocking(move || look(&context)).await;
        if let Ok(Err(message)) = looked {
            tracing::warn!("images are not removed from a full disk: {message}");
        }
        tokio::time::sleep(Duration::from_secs(PERIOD_S)).await;
    }
}

fn look(context: &Context) -> Result<(), String> {
    let store = &context.images.store;
    let used = || used_percent(store.directory()).unwrap_or(0);
    if used() < HIGH_PERCENT {
        return Ok(());
    }
    let removed = store.collect(now().seconds() - MIN_AGE_S, || used() <= LOW_PERCENT)?;
    for image in &removed {
        tracing::info!("removed image {}: the disk was {HIGH_PERCENT} % full", image.id);
    }
    if removed.is_empty() {
        tracing::warn!(
            "the disk of {} is {} % full, and no image can be removed",
            store.directory().display(),
            used()
        );
    }
    Ok(())
}

/// The part of a disk that is in use, as the kubelet counts it.
fn used_percent(path: &Path) -> Option<u64> {
    let found = statvfs(path).ok()?;
    percent(found.blocks(), found.blocks_available())
}

fn percent(blocks: u64, available: u64) -> Option<u64> {
    Some(100 - available.checked_mul(100)?.checked_div(blocks)?.min(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_as_full_as_the_kubelet_says() {
        assert_eq!(percent(1000, 150), Some(85));
        assert_eq!(percent(1000, 155), Some(85));
        assert_eq!(percent(1000, 200), Some(80));
        assert_eq!(percent(1000, 1000), Some(0));
        assert_eq!(percent(0, 0), None, "a file system without a size is never full");
    }
}
