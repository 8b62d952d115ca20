//! The annotations `kubernetes.io/ingress-bandwidth` and `kubernetes.io/egress-bandwidth` (BW).

use anyhow::{Context, Result, ensure};
use e2e::cluster::READY;
use e2e::eventually;
use serde_json::{Value, json};

use super::world::{NAMESPACE, World, echo_pod, free_on};

/// Low enough that this machine's speed does not matter.
const INGRESS_BITS_PER_S: f64 = 20e6;
const EGRESS_BITS_PER_S: f64 = 12e6;
/// What a rate may be off by.
const TOLERANCE: f64 = 0.05;
/// Bytes of a stream.
const BODY_BYTES: u32 = 6_000_000;
/// What passes besides the rate: the bucket that a pod gets which names none.
const BUCKET_BITS: f64 = 96.0 * 1024.0 * 8.0;
/// Streams until one is as fast as it may be: on a machine that is busy with other tests, some are
/// slowed down by that alone. None may be faster.
const ATTEMPTS: usize = 6;
/// What a segment carries of what the limit counts: an MTU of 1450 bytes less headers of IPv4 and
/// TCP with a time stamp, and the Ethernet header besides.
const PAYLOAD_SHARE: f64 = 1398.0 / 1464.0;

pub fn limits_hold(world: &World) -> Result<()> {
    let [first, second] = &world.cluster.nodes[..] else { anyhow::bail!("two nodes") };
    let mut limited = echo_pod("limited", first);
    limited["metadata"]["annotations"] = json!({
        "kubernetes.io/ingress-bandwidth": "20M",
        "kubernetes.io/egress-bandwidth": "12000k",
    });
    world.start(&limited)?;
    for node in [first, second] {
        let free = free_on(node);
        let rows = [
            ("ingress", INGRESS_BITS_PER_S, "limited", free.as_str()),
            ("egress", EGRESS_BITS_PER_S, free.as_str(), "limited"),
        ];
        for (direction, wanted, reader, server) in rows {
            let (least, most) = (wanted * (1.0 - TOLERANCE), wanted * (1.0 + TOLERANCE));
            let mut rates = Vec::new();
            while rates.len() < ATTEMPTS && rates.iter().all(|rate| *rate < least) {
                rates.push(rate(world, reader, server)?);
            }
            println!("    {direction}, other pod on {node}: {rates:.0?} bits a second");
            let best = rates.iter().copied().fold(0.0, f64::max);
            ensure!((least..=most).contains(&best), "{direction}: {rates:?} instead of {wanted}");
        }
    }
    world.stop("limited")
}

/// Bits a second of a stream from one pod to another.
fn rate(world: &World, reader: &str, server: &str) -> Result<f64> {
    let address = world.pod_ip(server)?;
    let url = format!("http://{address}:8080/bytes?n={BODY_BYTES}");
    let command = ["toolbox", "http", "--json", "--timeout-ms", "30000", &url];
    let text = world.cluster.exec(NAMESPACE, reader, &command)?;
    let summary: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(summary["failed"] == 0 && summary["body_bytes"] == BODY_BYTES, "{summary}");
    let seconds = summary["max_us"].as_f64().context("no time")? / 1e6;
    Ok((f64::from(BODY_BYTES) * 8.0 / PAYLOAD_SHARE - BUCKET_BITS) / seconds)
}

pub fn wrong_annotation(world: &World) -> Result<()> {
    let mut pod = echo_pod("hurried", &world.cluster.nodes[0]);
    pod["metadata"]["annotations"] = json!({ "kubernetes.io/egress-bandwidth": "fast" });
    world.apply(&pod)?;
    eventually("an Event names the annotation", READY, || {
        let events = world.events("hurried")?;
        ensure!(events.contains("egress-bandwidth") && events.contains("fast"), "{events}");
        Ok(())
    })?;
    let phase = world.cluster.field(NAMESPACE, "pod", "hurried", "/status/phase")?;
    ensure!(phase == "Pending", "the pod should wait, and is {phase}");
    world.stop("hurried")
}
