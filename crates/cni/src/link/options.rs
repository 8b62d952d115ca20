//! [`LinkOptions`]: what the network configuration says about a pod's interface.
//!
//! The keys are those of the reference plugins bridge, macvlan, bandwidth and tuning, all in one
//! configuration; `datapath` chooses between the ways to connect a pod.

use model::attachment::{Bandwidth, Rate};
use model::{MacAddress, layout};
use serde::Deserialize;
use serde_json::Value;

use super::tuning::{self, Tuning};
use crate::fault::{Fault, INVALID_CONFIG};
use crate::request::Request;

/// The highest VLAN identifier (IEEE 802.1Q: 0 and 4095 are reserved).
const VLAN_MAX: u16 = 4094;
/// The kernel keeps a bucket's size as 32 bits of bytes.
const BURST_BYTES_MAX: u64 = u32::MAX as u64;
/// What kubelets and container runtimes send for "no opinion" on a burst. Taken at its word, the
/// first 256 or 512 MiB would pass without any limit.
const BURST_UNSET_BITS: [u64; 2] = [i32::MAX as u64, u32::MAX as u64];
/// What a bucket then holds: the traffic of so many milliseconds …
const BURST_DEFAULT_MS: u64 = 20;
/// … but at least this, so that one segmented packet of the largest size fits.
const BURST_DEFAULT_BYTES_MIN: u64 = 96 * 1024;

/// How to make and keep a pod's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkOptions {
    /// How it is connected to the node.
    pub datapath: Datapath,
    /// MTU in bytes; the kernel's default when `None`.
    pub mtu: Option<u32>,
    /// The MAC address that someone asked for; derived from the first address when `None`.
    pub mac: Option<MacAddress>,
    /// Limits of the pod's traffic.
    pub bandwidth: Bandwidth,
    /// Further properties of the pod's interface, and kernel parameters of its namespace.
    pub tuning: Tuning,
}

/// The ways to connect a pod to its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datapath {
    /// A veth pair to a bridge.
    Bridge(BridgeOptions),
    /// A veth pair without a shared layer 2.
    Routed,
    /// A macvlan link on one of the node's links.
    Macvlan(MacvlanOptions),
}

/// The bridge and the pod's port of it (reference plugin `bridge`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BridgeOptions {
    /// Its name.
    pub name: String,
    /// Whether the bridge gets the gateway's address: always, never, or (`None`) only when this
    /// plugin makes the bridge. One that somebody else made may have any address of its subnet.
    pub is_gateway: Option<bool>,
    /// Whether the gateway is the pod's default one even where no route says so.
    pub is_default_gateway: bool,
    /// Whether other addresses of the bridge give way to the gateway's.
    pub force_address: bool,
    /// Whether frames may leave by the port that they came from.
    pub hairpin: bool,
    /// Whether the bridge takes frames for others.
    pub promiscuous: bool,
    /// Whether pods of the bridge cannot reach each other but through the node.
    pub port_isolation: bool,
    /// The VLAN of the pod's untagged frames.
    pub vlan: Option<u16>,
    /// First and last identifiers of VLANs that the pod may use with tags.
    pub vlan_trunk: Vec<(u16, u16)>,
    /// Whether the port also stays in the bridge's default VLAN.
    pub preserve_default_vlan: bool,
    /// Whether the pod's end stays down and without addresses.
    pub disable_container_interface: bool,
}

impl BridgeOptions {
    /// Whether the bridge must tell VLANs apart.
    pub(crate) fn uses_vlans(&self) -> bool {
        self.vlan.is_some() || !self.vlan_trunk.is_empty()
    }
}

/// A macvlan link (reference plugin `macvlan`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MacvlanOptions {
    /// The node's link below; that of the default route when `None`.
    pub master: Option<String>,
    /// Who of the pods on one link may talk to whom.
    pub mode: netlink::MacvlanMode,
}

/// The keys that concern links; others are passed over here.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    datapath: Option<String>,
    bridge: Option<String>,
    is_gateway: Option<bool>,
    is_default_gateway: bool,
    force_address: bool,
    hairpin_mode: Option<bool>,
    promisc_mode: bool,
    port_isolation: bool,
    vlan: u16,
    vlan_trunk: Vec<Trunk>,
    preserve_default_vlan: Option<bool>,
    disable_container_interface: bool,
    master: Option<String>,
    mode: Option<String>,
    mtu: Option<u32>,
    mac: Option<String>,
    ipam: Value,
    args: Arguments,
    runtime_config: RuntimeConfig,
    #[serde(flatten)]
    limits: Limits,
}

/// Static limits, and the form in which runtimes pass a pod's annotations.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Limits {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Trunk {
    #[serde(rename = "minID")]
    first: Option<u16>,
    #[serde(rename = "maxID")]
    last: Option<u16>,
    id: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Arguments {
    cni: RequestedMac,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RequestedMac {
    mac: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RuntimeConfig {
    mac: Option<String>,
    bandwidth: Limits,
}

impl LinkOptions {
    /// Reads and checks what concerns the pod's interface in a whole network configuration.
    ///
    /// # Errors
    /// Code 7, naming key and value.
    pub fn parse(config: &Value, request: &Request) -> Result<Self, Fault> {
        let document: Document = Document::deserialize(config)
            .map_err(|error| invalid("the configuration cannot be understood", error))?;
        let mac = requested_mac(&document, request)?;
        let bandwidth = Bandwidth {
            ingress: rate(
                "ingress",
                [document.limits.ingress_rate, document.limits.ingress_burst],
                [
                    document.runtime_config.bandwidth.ingress_rate,
                    document.runtime_config.bandwidth.ingress_burst,
                ],
            )?,
            egress: rate(
                "egress",
                [document.limits.egress_rate, document.limits.egress_burst],
                [
                    document.runtime_config.bandwidth.egress_rate,
                    document.runtime_config.bandwidth.egress_burst,
                ],
            )?,
        };
        let datapath = match document.datapath.as_deref() {
            None | Some("bridge") => Datapath::Bridge(document.bridge()?),
            Some("routed") => Datapath::Routed,
            Some("macvlan") => Datapath::Macvlan(document.macvlan()?),
            Some(other) => {
                return Err(invalid(
                    &format!("invalid datapath: {other:?}"),
                    "it is bridge, routed or macvlan",
                ));
            }
        };
        if matches!(datapath, Datapath::Macvlan(_)) && bandwidth != Bandwidth::default() {
            return Err(invalid(
                "the datapath macvlan cannot limit bandwidth",
                "its packets pass no link of the node that is the pod's own: use another datapath",
            ));
        }
        Ok(Self {
            datapath,
            mtu: document.mtu.filter(|mtu| *mtu != 0),
            mac,
            bandwidth,
            tuning: tuning::parse(config, &request.interface)?,
        })
    }
}

impl Document {
    fn bridge(&self) -> Result<BridgeOptions, Fault> {
        if self.promisc_mode && self.hairpin_mode == Some(true) {
            return Err(invalid(
                "promiscMode and hairpinMode exclude each other",
                "hairpinMode is enough for a pod that reaches itself through a Service",
            ));
        }
        let has_ipam = self.ipam.get("type").and_then(Value::as_str).is_some_and(|t| !t.is_empty());
        if self.disable_container_interface && has_ipam {
            return Err(invalid(
                "disableContainerInterface cannot be used with ipam",
                "an interface that is down has no addresses: remove one of the two",
            ));
        }
        if self.vlan > VLAN_MAX {
            return Err(invalid(&format!("invalid vlan: {}", self.vlan), vlan_range()));
        }
        Ok(BridgeOptions {
            name: self.bridge.clone().unwrap_or_else(|| layout::BRIDGE.to_owned()),
            is_gateway: if self.is_default_gateway { Some(true) } else { self.is_gateway },
            is_default_gateway: self.is_default_gateway,
            force_address: self.force_address,
            hairpin: self.hairpin_mode.unwrap_or(!self.promisc_mode),
            promiscuous: self.promisc_mode,
            port_isolation: self.port_isolation,
            vlan: Some(self.vlan).filter(|vlan| *vlan != 0),
            vlan_trunk: self.vlan_trunk.iter().map(trunk).collect::<Result<_, _>>()?,
            preserve_default_vlan: self.preserve_default_vlan.unwrap_or(true),
            disable_container_interface: self.disable_container_interface,
        })
    }

    fn macvlan(&self) -> Result<MacvlanOptions, Fault> {
        let name = self.mode.as_deref().unwrap_or("bridge");
        let mode = netlink::MacvlanMode::of_name(name).ok_or_else(|| {
            invalid(&format!("invalid mode: {name:?}"), "it is bridge, private, vepa or passthru")
        })?;
        let master = self.master.clone().filter(|master| !master.is_empty());
        Ok(MacvlanOptions { master, mode })
    }
}

/// The runtime's word goes before the configuration's, and both before `CNI_ARGS`, as with the
/// reference plugins.
fn requested_mac(document: &Document, request: &Request) -> Result<Option<MacAddress>, Fault> {
    let texts = [&document.runtime_config.mac, &document.args.cni.mac];
    let first = texts.into_iter().flatten().find(|text| !text.is_empty());
    let text = match (first, request.requested_mac) {
        (Some(text), _) => text,
        (None, Some(mac)) => return unicast(mac).map(Some),
        (None, None) => match &document.mac {
            Some(text) if !text.is_empty() => text,
            _ => return Ok(None),
        },
    };
    let mac = text.parse().map_err(|error| invalid(&format!("invalid mac: {text:?}"), error))?;
    unicast(mac).map(Some)
}

fn unicast(mac: MacAddress) -> Result<MacAddress, Fault> {
    if mac.0[0] & 1 == 0 && mac != MacAddress::default() {
        return Ok(mac);
    }
    Err(invalid(&format!("invalid mac: {mac}"), "an interface has a unicast address"))
}

fn trunk(trunk: &Trunk) -> Result<(u16, u16), Fault> {
    let (first, last) = match (trunk.first, trunk.last, trunk.id) {
        (Some(first), Some(last), None) => (first, last),
        (None, None, Some(id)) => (id, id),
        _ => return Err(invalid("invalid vlanTrunk", "an entry has minID and maxID, or id")),
    };
    if first == 0 || last > VLAN_MAX || first > last {
        return Err(invalid(&format!("invalid vlanTrunk: {first} to {last}"), vlan_range()));
    }
    Ok((first, last))
}

fn vlan_range() -> String {
    format!("VLANs have the numbers 1 to {VLAN_MAX}, the smaller one first")
}

/// The limit of one direction from rates and bursts in bits: an administrator's static one, or
/// else the one of the pod's annotations. A rate of zero is none.
fn rate(direction: &str, fixed: [u64; 2], annotated: [u64; 2]) -> Result<Option<Rate>, Fault> {
    let [bits_per_s, burst] = if fixed == [0, 0] { annotated } else { fixed };
    let said = || format!("invalid {direction} limit: rate {bits_per_s}, burst {burst}");
    match (bits_per_s, burst) {
        (0, 0) => Ok(None),
        (0, _) => Err(invalid(&said(), "a burst needs a rate")),
        (_, 0) => Err(invalid(&said(), "a rate needs a burst, also in bits")),
        (1..8, _) => Err(invalid(&said(), "the least rate is 8 bits a second")),
        (_, burst) if burst / 8 > BURST_BYTES_MAX => {
            Err(invalid(&said(), format!("the burst has at most {BURST_BYTES_MAX} bytes")))
        }
        (_, burst) if burst < 8 => Err(invalid(&said(), "the least burst is 8 bits")),
        (_, burst) if BURST_UNSET_BITS.contains(&burst) => {
            let bytes = (bits_per_s / 8 / 1000).saturating_mul(BURST_DEFAULT_MS);
            let bytes = bytes.clamp(BURST_DEFAULT_BYTES_MIN, BURST_BYTES_MAX);
            Ok(Some(Rate { bits_per_s, burst_bits: bytes * 8 }))
        }
        (_, burst_bits) => Ok(Some(Rate { bits_per_s, burst_bits })),
    }
}

pub(crate) fn invalid(message: &str, details: impl std::fmt::Display) -> Fault {
    Fault::new(INVALID_CONFIG, message, details)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Command;
    use serde_json::json;

    fn parse(config: Value) -> Result<LinkOptions, Fault> {
        parse_with(config, None)
    }

    fn parse_with(config: Value, requested_mac: Option<MacAddress>) -> Result<LinkOptions, Fault> {
        let request = Request::parse(&|name: &str| match name {
            "CNI_COMMAND" => Some("DEL".to_owned()),
            "CNI_CONTAINERID" => Some("c1".to_owned()),
            "CNI_IFNAME" => Some("eth0".to_owned()),
            _ => None,
        })?;
        assert_eq!(request.command, Command::Del);
        LinkOptions::parse(&config, &Request { requested_mac, ..request })
    }

    fn bridge(config: Value) -> BridgeOptions {
        match parse(config).expect("options").datapath {
            Datapath::Bridge(options) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_configuration_that_says_nothing_is_a_pod_on_the_bridge() {
        let options = parse(json!({ "mtu": 0 })).expect("options");
        assert_eq!(
            (options.mtu, options.mac, options.bandwidth),
            (None, None, Bandwidth::default())
        );
        let options = bridge(json!({}));
        assert_eq!(options.name, layout::BRIDGE);
        assert!(options.hairpin && options.preserve_default_vlan && !options.uses_vlans());
        assert!(!bridge(json!({ "promiscMode": true })).hairpin);
    }

    /// BR: mac by args, CNI_ARGS and runtimeConfig.
    #[test]
    fn a_mac_is_the_runtimes_or_else_the_arguments_or_else_the_configurations() {
        let [a, b, c, d] = [1, 2, 3, 4].map(|last| MacAddress([0x0a, 0, 0, 0, 0, last]));
        let runtime = json!({ "mac": a.to_string() });
        let cni = json!({ "cni": { "mac": b.to_string() } });
        let rows = [
            (json!({ "runtimeConfig": runtime, "args": cni, "mac": d.to_string() }), Some(c), a),
            (json!({ "args": cni, "mac": d.to_string() }), Some(c), b),
            (json!({ "mac": d.to_string(), "runtimeConfig": { "mac": "" } }), Some(c), c),
            (json!({ "mac": d.to_string() }), None, d),
        ];
        for (config, requested, expected) in rows {
            let options = parse_with(config.clone(), requested).expect("options");
            assert_eq!(options.mac, Some(expected), "{config}");
        }
    }

    /// BW: static and runtimeConfig merged; zero = off; "no opinion" on a burst is a small one.
    #[test]
    fn an_administrators_limit_goes_before_a_pods_and_zero_is_none() {
        let options = parse(json!({
            "ingressRate": 8_000, "ingressBurst": 16_000, "egressRate": 0, "egressBurst": 0,
            "runtimeConfig": { "bandwidth": {
                "ingressRate": 99_000, "ingressBurst": 99_000,
                "egressRate": 100_000_000, "egressBurst": 2_147_483_647,
            } },
        }))
        .expect("options");
        let ingress = Rate { bits_per_s: 8_000, burst_bits: 16_000 };
        assert_eq!(options.bandwidth.ingress, Some(ingress));
        let egress = options.bandwidth.egress.expect("the pod's own");
        assert_eq!((egress.bits_per_s, egress.burst_bits), (100_000_000, 2_000_000));
        let slow = rate("egress", [0, 0], [1_000_000, 4_294_967_295]).expect("a rate");
        assert_eq!(slow.map(|slow| slow.burst_bits), Some(BURST_DEFAULT_BYTES_MIN * 8));
        let largest = rate("egress", [1_000_000, BURST_BYTES_MAX * 8 + 7], [0, 0]);
        assert!(largest.is_ok(), "the burst limit counts whole bytes");
    }

    #[test]
    fn faults_are_of_the_configuration_and_name_key_and_value() {
        let trunk =
            |first: u16, last: u16| json!({ "vlanTrunk": [{ "minID": first, "maxID": last }] });
        let rows = [
            (json!({ "datapath": "wires" }), "datapath: \"wires\""),
            (json!({ "datapath": "macvlan", "mode": "loud" }), "mode: \"loud\""),
            (json!({ "vlan": 4095 }), "vlan: 4095"),
            (trunk(0, 5), "vlanTrunk: 0 to 5"),
            (trunk(9, 5), "vlanTrunk: 9 to 5"),
            (trunk(9, 4095), "vlanTrunk: 9 to 4095"),
            (json!({ "vlanTrunk": [{ "minID": 9 }] }), "vlanTrunk"),
            (json!({ "promiscMode": true, "hairpinMode": true }), "hairpinMode exclude"),
            (
                json!({ "disableContainerInterface": true, "ipam": { "type": "host-local" } }),
                "disableContainerInterface",
            ),
            (json!({ "mac": "0a:58" }), "mac: \"0a:58\""),
            (json!({ "mac": "01:00:5e:00:00:01" }), "mac: 01:00:5e:00:00:01"),
            (json!({ "ingressRate": 100 }), "ingress limit: rate 100, burst 0"),
            (json!({ "egressBurst": 100 }), "egress limit: rate 0, burst 100"),
            (
                json!({ "egressRate": 100, "egressBurst": (BURST_BYTES_MAX + 1) * 8 }),
                "egress limit: rate 100, burst 34359738368",
            ),
            (
                json!({ "datapath": "macvlan", "ingressRate": 100, "ingressBurst": 100 }),
                "macvlan cannot limit bandwidth",
            ),
        ];
        for (config, said) in rows {
            let fault = parse(config.clone()).expect_err(said);
            assert_eq!(fault.code, INVALID_CONFIG, "{config}");
            assert!(fault.message.contains(said), "{fault} should say {said}");
        }
    }
}
