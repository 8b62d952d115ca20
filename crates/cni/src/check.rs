//! CHECK: whether what ADD made is still there (CNI-18).

use kernel::edge::Edge;
use model::Attachment;
use model::attachment::PodLink;

use crate::addresses::{self, Invocation};
use crate::command::{lacking, open_records};
use crate::fault::{CHECK_FAILED, Fault};
use crate::link::options::{Datapath, LinkOptions};
use crate::link::{self, Expected};
use crate::result::Address;

/// Compares the kernel and the reservations with an earlier result and the record.
pub(crate) fn run(call: &Invocation<'_>) -> Result<(), Fault> {
    let (request, config) = (call.request, call.config);
    let previous = config.previous.as_ref().ok_or_else(|| lacking("prevResult", "CHECK"))?;
    let success = &previous.success;
    let options = LinkOptions::parse(call.value, request)?;
    let recorded = open_records(call)?.find(&request.container_id, &request.interface)?;
    let attachment = recorded.clone().unwrap_or_else(|| unrecorded(call, &options));
    let own = success.position(&request.interface).ok_or_else(|| {
        failed(&format!("prevResult does not name the interface {}", request.interface))
    })?;
    let is_own = |address: &&Address| address.interface_index == Some(own);
    let of_interface: Vec<Address> = success.addresses.iter().filter(is_own).cloned().collect();
    let expected = Expected {
        mac: success.interfaces.get(own).map(|one| one.mac.as_str()).unwrap_or_default(),
        addresses: &of_interface,
        routes: &success.routes,
    };
    link::check(request, &options, &attachment, &expected)?;
    // A pod that was added before there were records has no rules.
    if recorded.is_some() {
        let missing = Edge::open()?.check(&attachment)?;
        if !missing.is_empty() {
            return Err(failed(&format!("rules at the pod's edge: {}", missing.join("; "))));
        }
    }
    addresses::check(call, &success.addresses)
}

fn unrecorded(call: &Invocation<'_>, options: &LinkOptions) -> Attachment {
    let request = call.request;
    let mut attachment = link::unrecorded(&request.container_id, &request.interface);
    match (&mut attachment.link, &options.datapath) {
        (link, _) if call.config.is_chained() => *link = PodLink::default(),
        (PodLink::Bridge { bridge, .. }, Datapath::Bridge(wanted)) => {
            bridge.clone_from(&wanted.name);
        }
        _ => {}
    }
    attachment
}

fn failed(what: &str) -> Fault {
    Fault::new(CHECK_FAILED, what, "delete the pod, so that it is made anew")
}
