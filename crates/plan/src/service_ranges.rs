//! Ranges of Service addresses: those of the configuration, and those that ServiceCIDR objects add
//! at run time (KEP-1880, S-13). All that depends on the ranges (who is refused there, what is not
//! masqueraded, which external addresses are none) takes both alike.

use ipnet::IpNet;
use model::{ClusterConfig, Family, World};

use crate::Finding;

/// Ranges beyond the configured ones that are heeded: each costs a rule that every new flow meets.
pub const FURTHER_RANGES_MAX: usize = 64;

/// The configuration with the ranges of all ServiceCIDR objects, in the order of their names after
/// the configured ones. An object that is being deleted counts until it is gone: the API server
/// keeps it as long as a Service has an address of it.
///
/// A range that cannot be one is left out, with a finding (invariant 8): rules about addresses of
/// Services would stop what else has them.
pub fn extended(world: &World, configured: &ClusterConfig) -> (ClusterConfig, Vec<Finding>) {
    let mut config = configured.clone();
    let mut findings = Vec::new();
    let limit = configured.service_cidrs.len() + FURTHER_RANGES_MAX;
    for object in world.service_cidrs() {
        for text in &object.spec.cidrs {
            let reason = match text.parse::<IpNet>() {
                Err(_) => Some("it is no range".to_owned()),
                Ok(range) => add(&mut config, configured, range.trunc(), limit).err(),
            };
            findings.extend(reason.map(|reason| Finding {
                about: format!("ServiceCIDR {}", object.metadata.name),
                message: format!(
                    "the range {text:?} is left out: {reason}; Services with addresses of it are \
                     reached, but its other addresses are not known as the cluster's"
                ),
            }));
        }
    }
    (config, findings)
}

fn add(
    config: &mut ClusterConfig,
    configured: &ClusterConfig,
    range: IpNet,
    limit: usize,
) -> Result<(), String> {
    let overlaps = |other: &&IpNet| other.contains(&range) || range.contains(*other);
    // The object named `kubernetes` tells of the configured ranges.
    if config.service_cidrs.iter().any(|known| known.contains(&range)) {
        return Ok(());
    }
    let family = Family::of(&range.addr());
    if !configured.service_cidrs.iter().any(|known| Family::of(&known.addr()) == family) {
        return Err(format!("the cluster was made without {family} for Services"));
    }
    for (others, what) in [(&configured.pod_cidrs, "pods"), (&configured.node_cidrs, "nodes")] {
        if let Some(other) = others.iter().find(overlaps) {
            return Err(format!("it overlaps the range {other} of {what}"));
        }
    }
    if config.service_cidrs.len() >= limit {
        return Err(format!("there are {FURTHER_RANGES_MAX} further ranges already"));
    }
    // The kernel walks over as few as there can be.
    let is_further = |known: &IpNet| !configured.service_cidrs.contains(known);
    config.service_cidrs.retain(|known| !(is_further(known) && range.contains(known)));
    config.service_cidrs.push(range);
    Ok(())
}

#[cfg(test)]
mod tests {
    use model::ServiceCidr;
    use model::world::Object;

    use super::*;

    fn range(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    fn extended_by(objects: &[(&str, &[&str])]) -> (Vec<IpNet>, Vec<Finding>) {
        let mut world = World::default();
        for (name, ranges) in objects {
            let mut object = ServiceCidr::default();
            object.metadata.name = (*name).into();
            object.spec.cidrs = ranges.iter().map(|&range| range.into()).collect();
            world.set(Object::ServiceCidr(object.into()));
        }
        let (config, findings) = extended(&world, &ClusterConfig::default());
        (config.service_cidrs, findings)
    }

    /// S-13: a range that is added at run time counts as the configured ones do.
    #[test]
    fn ranges_of_objects_come_after_the_configured_ones() {
        for (objects, expected) in [
            (&[][..], &["10.96.0.0/16"][..]),
            (&[("kubernetes", &["10.96.0.0/16"][..])], &["10.96.0.0/16"]),
            (&[("more", &["10.200.0.0/24"][..])], &["10.96.0.0/16", "10.200.0.0/24"]),
            // Host bits are not the network's.
            (&[("more", &["10.200.0.9/24"][..])], &["10.96.0.0/16", "10.200.0.0/24"]),
            // What another holds already is no further range.
            (
                &[("a", &["10.200.0.0/24"][..]), ("b", &["10.200.0.0/23"][..])],
                &["10.96.0.0/16", "10.200.0.0/23"],
            ),
        ] {
            let (ranges, findings) = extended_by(objects);
            let expected: Vec<IpNet> = expected.iter().map(|text| range(text)).collect();
            assert_eq!((ranges, findings), (expected, vec![]), "{objects:?}");
        }
    }

    #[test]
    fn a_range_that_cannot_be_one_is_left_out_and_told() {
        for (text, reason) in [
            ("10.200.0.0", "no range"),
            ("10.244.1.0/24", "10.244.0.0/16 of pods"),
            ("10.0.0.0/8", "of pods"),
            ("172.30.0.0/28", "172.30.0.0/24 of nodes"),
            ("fd00:10:96::/112", "without IPv6"),
        ] {
            let (ranges, findings) = extended_by(&[("more", &[text])]);
            assert_eq!(ranges, [range("10.96.0.0/16")], "{text}");
            let [finding] = findings.as_slice() else { panic!("{text}: {findings:?}") };
            assert_eq!(finding.about, "ServiceCIDR more");
            assert!(finding.message.contains(reason), "{text}: {}", finding.message);
        }
    }

    #[test]
    fn ranges_beyond_the_limit_are_left_out_and_told() {
        let names: Vec<String> =
            (0..=FURTHER_RANGES_MAX).map(|number| format!("10.200.{number}.0/24")).collect();
        let texts: Vec<[&str; 1]> = names.iter().map(|name| [name.as_str()]).collect();
        let objects: Vec<(&str, &[&str])> =
            names.iter().zip(&texts).map(|(name, text)| (name.as_str(), &text[..])).collect();
        let (ranges, findings) = extended_by(&objects);
        assert_eq!((ranges.len(), findings.len()), (1 + FURTHER_RANGES_MAX, 1));
    }
}
