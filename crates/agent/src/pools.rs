//! How many addresses of the node's pod ranges are held and free, as the plugin's directory says.

use std::path::Path;

use anyhow::Result;
use ipam::Directory;
use ipnet::IpNet;
use model::layout;

use crate::blocks::capacity;
use crate::health::Pool;

/// The state of each range. Without a directory no pod was ever added.
///
/// # Errors
/// When the directory cannot be read.
pub(crate) fn read(base: &Path, ranges: &[IpNet]) -> Result<Vec<Pool>> {
    let directory = Directory::open_existing(base, layout::CNI_NETWORK)?;
    let reserved = match &directory {
        Some(directory) => directory.reservations()?,
        None => Default::default(),
    };
    let pool = |range: &IpNet| {
        let held = reserved.keys().filter(|address| range.contains(*address)).count() as u64;
        Pool { range: range.to_string(), held, free: free(range, held) }
    };
    Ok(ranges.iter().map(pool).collect())
}

fn free(range: &IpNet, held: u64) -> u64 {
    u64::try_from(capacity(range)).unwrap_or(u64::MAX).saturating_sub(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_gateway_and_broadcast_are_not_for_pods() {
        for (range, expected) in [("10.244.1.0/24", 253), ("10.244.1.0/28", 13)] {
            assert_eq!(capacity(&range.parse().expect("a range")), expected, "{range}");
        }
        assert!(capacity(&"fd00::/64".parse().expect("a range")) > 1 << 60);
    }

    #[test]
    fn before_the_first_pod_everything_is_free() {
        let base = std::env::temp_dir().join(format!("flatnet-pools-{}", std::process::id()));
        let range = "10.244.1.0/24".parse().expect("a range");
        let pools = read(&base, &[range]).expect("read");
        assert_eq!(pools[0], Pool { range: range.to_string(), held: 0, free: 253 });
        assert!(!base.exists(), "looking makes nothing");
    }
}
