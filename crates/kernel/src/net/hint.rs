//! What to do about a refused op.

use render::net::{Feature, LinkKind, NetOp};

/// What to do, where the errno of an op has one usual cause.
pub(super) fn hint(op: &NetOp, errno: i32) -> String {
    let hint = match Feature::lacked(op, errno) {
        Some(feature) => feature.advice(),
        None => usual(op, errno),
    };
    if hint.is_empty() { String::new() } else { format!("; {hint}") }
}

fn usual(op: &NetOp, errno: i32) -> &'static str {
    match (op, errno) {
        (NetOp::SetSysctl { .. }, libc::EROFS) => {
            "/proc/sys is read-only here: run privileged, or mount it writable"
        }
        (NetOp::AddLink { kind: LinkKind::Bridge, .. }, libc::EEXIST) => {
            "a link of this name is there and is no bridge: rename or delete it"
        }
        (NetOp::AddLink { kind: LinkKind::Vxlan { .. }, .. }, libc::EEXIST) => {
            "another program has a link of this name, or a VXLAN of the same VNI and port \
             (flannel uses the same): remove it"
        }
        (NetOp::AddLink { kind: LinkKind::Ipip { .. }, .. }, libc::EEXIST) => {
            "another program has a link of this name, or an IP-in-IP link of this address \
             without a far end: remove it"
        }
        (NetOp::SetWireguard { .. }, libc::EADDRINUSE) => {
            "another program has this UDP port: stop it, or choose another wireguardPort"
        }
        (NetOp::AddRoute { .. }, libc::EEXIST) => {
            "another program has a route to this range: find it with `ip route` and remove it, \
             or choose another pod range"
        }
        (NetOp::AddRoute { .. } | NetOp::ReplaceRoute { .. }, libc::ENETUNREACH) => {
            "the node is not on this node's L2 segment: use the vxlan overlay"
        }
        (_, libc::EPERM) => "this needs CAP_NET_ADMIN in the node's network namespace",
        _ => "",
    }
}
