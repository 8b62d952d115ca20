//! ADD where the pod's addresses are leased over its own interface (`ipam.type` is `dhcp`): the
//! interface is there first, up and without addresses, and gets them when the lease came. No process
//! of the pod runs before ADD ends, so that it says nothing meanwhile.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use model::Attachment;
use model::attachment::Edge;
use netlink::Netns;

use crate::addresses::{self, Invocation};
use crate::command::{begun, open_records, protect};
use crate::config::{Addressing, Config, Dns};
use crate::fault::{Fault, INVALID_CONFIG};
use crate::link::options::{Datapath, LinkOptions};
use crate::link::{self, Made};

/// The reference IPAM plugin that needs the interface.
const PLUGIN: &str = "dhcp";
/// What a client asks from while its lease is not confirmed (RFC 2131, section 4.1).
const WITHOUT_LEASE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Whether addresses are leased over the interface.
pub(crate) fn is_meant(config: &Config) -> bool {
    matches!(&config.addressing, Addressing::Delegated(plugin) if plugin == PLUGIN)
}

/// Makes the interface, leases its addresses and puts them on it. On a fault the caller calls
/// [`crate::command::delete`].
pub(crate) fn add(
    call: &Invocation<'_>,
    options: &LinkOptions,
    namespace: &Netns,
) -> Result<(Made, Dns), Fault> {
    if options.datapath == Datapath::Routed {
        return Err(Fault::new(
            INVALID_CONFIG,
            "ipam.type dhcp cannot serve the datapath routed",
            "no server hears a routed pod: choose the datapath bridge or macvlan",
        ));
    }
    let link::Plan { link, mac, .. } = link::plan(call.request, options, &[])?;
    let edge = Edge { anti_spoofing: false, ..Edge::default() };
    let bare = Attachment { link, mac, edge, ..begun(call, options)? };
    let records = open_records(call)?;
    protect(call, &records, &bare)?;
    link::make(call.request, options, namespace, &bare, &[], &[])?;
    // The server may take its time.
    drop(records);
    let given = addresses::give(call)?;
    let mut edge = call.config.edge.of(&given.addresses);
    edge.extra_sources.push(IpNet::from(WITHOUT_LEASE));
    let attachment = Attachment { addresses: given.addresses, edge, ..bare };
    let records = open_records(call)?;
    protect(call, &records, &attachment)?;
    let (gateways, routes) = (&given.gateways, &given.routes);
    let made = link::complete(call.request, options, namespace, &attachment, gateways, routes)?;
    records.finish(&attachment)?;
    Ok((made, given.dns))
}
