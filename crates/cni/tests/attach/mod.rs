//! Links made by the library itself, without address management and without rules at the edge.
#![allow(dead_code)] // each test program uses its part

use std::net::IpAddr;

use cni::config::Route;
use cni::fault::Fault;
use cni::link::options::LinkOptions;
use cni::link::{self, Made};
use cni::request::Request;
use ipnet::IpNet;
use model::Attachment;
use netlink::{LinkChange, Netlink, Netns};
use serde_json::{Value, json};

use crate::lab::Pod;

/// An address of a pod and the gateway of its range.
pub type Addressing<'a> = &'a [(&'a str, &'a str)];

pub const ONE: Addressing<'_> = &[("10.244.1.2/24", "10.244.1.1")];
pub const TWO: Addressing<'_> = &[("10.244.1.3/24", "10.244.1.1")];
pub const BOTH_ONE: Addressing<'_> =
    &[("10.244.1.2/24", "10.244.1.1"), ("fd00:10:244:1::2/64", "fd00:10:244:1::1")];
pub const BOTH_TWO: Addressing<'_> =
    &[("10.244.1.3/24", "10.244.1.1"), ("fd00:10:244:1::3/64", "fd00:10:244:1::1")];

/// One interface that was made, or that is to be.
pub struct Attached {
    pub request: Request,
    pub options: LinkOptions,
    pub attachment: Attachment,
    pub gateways: Vec<Option<IpAddr>>,
    pub made: Made,
}

impl Attached {
    /// The node's end.
    pub fn near(&self) -> &str {
        self.attachment.link.node_end().expect("an end on the node")
    }

    pub fn remove(&self, node: &Netns) -> Result<(), Fault> {
        node.run(|| link::remove(&self.attachment, None)).expect("the node's namespace")
    }

    pub fn check(&self, node: &Netns) -> Result<(), Fault> {
        let expected = link::Expected {
            mac: &self.attachment.mac.to_string(),
            addresses: &self.made.addresses,
            routes: &self.made.routes,
        };
        let check = || link::check(&self.request, &self.options, &self.attachment, &expected);
        node.run(check).expect("the node's namespace")
    }
}

pub fn request(pod: &Pod, arguments: &str) -> Request {
    let path = pod.path();
    let request = Request::parse(&|name: &str| {
        let value = match name {
            "CNI_COMMAND" => "ADD",
            "CNI_CONTAINERID" => &pod.id,
            "CNI_IFNAME" => "eth0",
            "CNI_NETNS" => &path,
            "CNI_ARGS" => arguments,
            _ => return None,
        };
        Some(value.to_owned())
    });
    request.expect("a request")
}

/// Plans, and makes what was planned. On a fault everything is removed again, as ADD does.
pub fn attach(
    node: &Netns,
    pod: &Pod,
    config: &Value,
    addressing: Addressing<'_>,
) -> Result<Attached, Fault> {
    let request = request(pod, "");
    let options = LinkOptions::parse(config, &request)?;
    let addresses: Vec<IpNet> =
        addressing.iter().map(|(address, _)| address.parse().expect("a prefix")).collect();
    let gateways: Vec<_> = addressing.iter().map(|(_, gateway)| gateway.parse().ok()).collect();
    let routes: Vec<Route> = match config.get("routes") {
        Some(routes) => serde_json::from_value(routes.clone()).expect("routes"),
        None => vec![],
    };
    let work = || {
        let plan = link::plan(&request, &options, &addresses)?;
        let attachment = Attachment {
            network: "net".into(),
            container_id: request.container_id.clone(),
            interface: request.interface.clone(),
            namespace: pod.path(),
            link: plan.link,
            mac: plan.mac,
            addresses: plan.addresses,
            bandwidth: options.bandwidth,
            ..Attachment::default()
        };
        let namespace = link::open_namespace(&request)?;
        let made = link::make(&request, &options, &namespace, &attachment, &gateways, &routes)
            .inspect_err(|_| link::remove(&attachment, None).expect("removed"))?;
        Ok::<_, Fault>((attachment, made))
    };
    let (attachment, made) = node.run(work).expect("the node's namespace")?;
    Ok(Attached { request, options, attachment, gateways, made })
}

/// The configuration of a data path with further keys.
pub fn config(datapath: &str, further: Value) -> Value {
    let mut config = json!({ "name": "net", "type": "flatnet", "datapath": datapath });
    for (key, value) in further.as_object().expect("keys") {
        config[key] = value.clone();
    }
    config
}

pub fn change(netlink: &mut Netlink, name: &str, change: &LinkChange<'_>) {
    let index = netlink.require_link(name).expect("the link").index;
    netlink.change_link(index, change).expect("changed");
}
