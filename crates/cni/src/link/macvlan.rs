//! A macvlan link on one of the node's links (reference plugin `macvlan`): the pod is a machine
//! of that segment, and its packets do not cross the node's rules.

use netlink::{Link, MacvlanMode, MacvlanSpec, Netlink};

use super::options::MacvlanOptions;
use super::pod::Setup;
use super::{Job, Made};
use crate::fault::{Fault, INVALID_CONFIG};

/// The node's link below: the named one, or that of the default route.
pub(super) fn lower_link(node: &mut Netlink, options: &MacvlanOptions) -> Result<Link, Fault> {
    let unusable =
        |message: String| Fault::new(INVALID_CONFIG, message, "name a link of this node as master");
    if let Some(master) = &options.master {
        let link = node.link(master)?;
        return link.ok_or_else(|| unusable(format!("there is no link {master:?}")));
    }
    let routes = node.routes(None)?;
    let default = routes.iter().find(|route| route.destination.prefix_len() == 0);
    let index = default.and_then(|route| route.link_index);
    let link = match index {
        Some(index) => node.link_at(index)?,
        None => None,
    };
    link.ok_or_else(|| unusable("there is no default route whose link could be master".into()))
}

/// Makes the link inside the pod.
pub(super) fn make(job: &Job<'_>, options: &MacvlanOptions) -> Result<Made, Fault> {
    let mut node = Netlink::open()?;
    let lower = lower_link(&mut node, options)?;
    // Only a passthru link may keep the MAC address of the link below.
    let keeps_mac = options.mode == MacvlanMode::Passthru && lower.mac == Some(job.attachment.mac);
    node.create_macvlan(&MacvlanSpec {
        name: &job.request.interface,
        lower_index: lower.index,
        mode: options.mode,
        namespace: job.namespace,
        mac: (!keeps_mac).then_some(job.attachment.mac),
        mtu: job.options.mtu,
    })?;
    complete(job)
}

/// Sets up the pod's end.
pub(super) fn complete(job: &Job<'_>) -> Result<Made, Fault> {
    let addresses = job.addresses(0, &|_, gateway| gateway);
    let setup = Setup {
        interface: &job.request.interface,
        index: None,
        alias: Some(&job.alias()),
        addresses: &addresses,
        routes: job.routes,
        gateway_mac: None,
        tuning: &job.options.tuning,
        down: false,
    };
    let far = job.namespace.run(|| setup.run())??;
    Ok(Made { interfaces: vec![job.interface(&far, true)], addresses, routes: job.routes.to_vec() })
}
