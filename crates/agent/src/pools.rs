//! How many addresses of the node's pod ranges are held and free, as the plugin's directory says.

use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use ipam::{Directory, Range};
use ipnet::IpNet;
use model::layout;

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
        Pool { range: range.to_string(), held, free: capacity(range).saturating_sub(held) }
    };
    Ok(ranges.iter().map(pool).collect())
}

/// Addresses of a range that pods can have: all but those with a meaning of their own.
fn capacity(range: &IpNet) -> u64 {
    let range = Range::whole(*range);
    let (first, last) = range.bounds();
    let all = number(last).saturating_sub(number(first)).saturating_add(1);
    let gateway = range.gateway().is_some_and(|gateway| (first..=last).contains(&gateway));
    u64::try_from(all.saturating_sub(u128::from(gateway))).unwrap_or(u64::MAX)
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
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
