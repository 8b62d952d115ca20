//! Virtual servers of IPVS and their destinations, by generic netlink
//! (`include/uapi/linux/ip_vs.h`).
//! Destinations get packets with their own address (masquerading, `ip_vs_nat_xmit`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::Error;
use crate::generic::{self, HEADER_BYTES};
use crate::message::{Attributes, Request, family_of, u16_of, u32_of};
use crate::socket::Socket;

const IPVS_GENL_NAME: &str = "IPVS";
const IPVS_GENL_VERSION: u8 = 1;

const IPVS_CMD_NEW_SERVICE: u8 = 1;
const IPVS_CMD_SET_SERVICE: u8 = 2;
const IPVS_CMD_DEL_SERVICE: u8 = 3;
const IPVS_CMD_GET_SERVICE: u8 = 4;
const IPVS_CMD_NEW_DEST: u8 = 5;
const IPVS_CMD_SET_DEST: u8 = 6;
const IPVS_CMD_DEL_DEST: u8 = 7;
const IPVS_CMD_GET_DEST: u8 = 8;

const IPVS_CMD_ATTR_SERVICE: u16 = 1;
const IPVS_CMD_ATTR_DEST: u16 = 2;

const IPVS_SVC_ATTR_AF: u16 = 1;
const IPVS_SVC_ATTR_PROTOCOL: u16 = 2;
const IPVS_SVC_ATTR_ADDR: u16 = 3;
const IPVS_SVC_ATTR_PORT: u16 = 4;
const IPVS_SVC_ATTR_SCHED_NAME: u16 = 6;
const IPVS_SVC_ATTR_FLAGS: u16 = 7;
const IPVS_SVC_ATTR_TIMEOUT: u16 = 8;
const IPVS_SVC_ATTR_NETMASK: u16 = 9;

const IPVS_DEST_ATTR_ADDR: u16 = 1;
const IPVS_DEST_ATTR_PORT: u16 = 2;
const IPVS_DEST_ATTR_FWD_METHOD: u16 = 3;
const IPVS_DEST_ATTR_WEIGHT: u16 = 4;
const IPVS_DEST_ATTR_U_THRESH: u16 = 5;
const IPVS_DEST_ATTR_L_THRESH: u16 = 6;
const IPVS_DEST_ATTR_ACTIVE_CONNS: u16 = 7;
const IPVS_DEST_ATTR_INACT_CONNS: u16 = 8;
const IPVS_DEST_ATTR_ADDR_FAMILY: u16 = 11;

const IP_VS_CONN_F_MASQ: u32 = 0;
const IP_VS_SVC_F_PERSISTENT: u32 = 1;
/// Bytes of `union nf_inet_addr`, for both families.
const ADDRESS_BYTES: usize = 16;
/// So often a list is asked for once more while it is not the same twice.
const CONFIRMATIONS_MAX: usize = 5;

/// What a virtual server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerId {
    /// The number of the transport protocol.
    pub protocol: u8,
    /// Address and port.
    pub address: SocketAddr,
}

/// How a virtual server chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// The kernel's name of the algorithm; to use one loads its module.
    pub scheduler: String,
    /// Bits of `flags` besides affinity, which the kernel keeps.
    pub flags: u32,
    /// Seconds that a client stays with its destination.
    pub affinity_timeout_s: Option<u32>,
}

/// A destination of a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Address and port.
    pub address: SocketAddr,
    /// Its weight; 0 gets no new connections.
    pub weight: u32,
    /// Connections that are established.
    pub active: u32,
    /// Connections that are not, or no longer.
    pub inactive: u32,
}

/// A kept generic netlink socket. The kernel's IPVS is looked for when it is needed first: asking
/// loads the module.
pub struct Ipvs {
    socket: Socket,
    family: Option<u16>,
}

impl Ipvs {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(libc::NETLINK_GENERIC)?, family: None })
    }

    /// Loads IPVS.
    ///
    /// # Errors
    /// `ENOENT` when the kernel has no IPVS, as all calls here.
    pub fn load(&mut self) -> Result<(), Error> {
        self.number().map(drop)
    }

    /// All virtual servers but those for firewall marks.
    ///
    /// A long answer comes in parts, and where the next one goes on the kernel finds by counting the
    /// servers of all network namespaces: those that come or go elsewhere meanwhile let it pass over
    /// some of ours or tell them twice, and no mark says so. So the answer is asked for until it is
    /// the same twice, a few times at most.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn servers(&mut self) -> Result<Vec<(ServerId, ServerOptions)>, Error> {
        let mut servers = self.servers_once()?;
        for _ in 0..CONFIRMATIONS_MAX {
            let again = self.servers_once()?;
            if again == servers {
                break;
            }
            servers = again;
        }
        Ok(servers)
    }

    fn servers_once(&mut self) -> Result<Vec<(ServerId, ServerOptions)>, Error> {
        let request = self.request(IPVS_CMD_GET_SERVICE)?;
        let messages = self.socket.dump(&request, || "list the virtual servers".into())?;
        let servers = messages.iter().filter_map(|message| {
            read_server(message.attributes(HEADER_BYTES).nested(IPVS_CMD_ATTR_SERVICE)?)
        });
        Ok(servers.collect())
    }

    /// Adds a virtual server without destinations.
    ///
    /// # Errors
    /// `EEXIST` when it is there, also when it is somebody else's; `ENOENT` when the kernel lacks
    /// the algorithm.
    pub fn add_server(&mut self, id: ServerId, options: &ServerOptions) -> Result<(), Error> {
        self.write_server(IPVS_CMD_NEW_SERVICE, "add", id, Some(options))
    }

    /// Changes how a virtual server chooses.
    ///
    /// # Errors
    /// `ESRCH` when it is not there; `ENOENT` when the kernel lacks the algorithm.
    pub fn change_server(&mut self, id: ServerId, options: &ServerOptions) -> Result<(), Error> {
        self.write_server(IPVS_CMD_SET_SERVICE, "change", id, Some(options))
    }

    /// Removes a virtual server with its destinations.
    ///
    /// # Errors
    /// `ESRCH` when it is not there.
    pub fn delete_server(&mut self, id: ServerId) -> Result<(), Error> {
        self.write_server(IPVS_CMD_DEL_SERVICE, "remove", id, None)
    }

    /// The destinations of a virtual server.
    ///
    /// # Errors
    /// When the kernel refuses. Without the server there are none.
    pub fn destinations(&mut self, id: ServerId) -> Result<Vec<Destination>, Error> {
        let mut request = self.request(IPVS_CMD_GET_DEST)?;
        write_server(&mut request, id, None);
        let action = || format!("list the destinations of {}", id.address);
        let messages = self.socket.dump(&request, action)?;
        let own_family = family_of(id.address.ip());
        let destinations = messages.iter().filter_map(|message| {
            let attributes = message.attributes(HEADER_BYTES);
            read_destination(attributes.nested(IPVS_CMD_ATTR_DEST)?, own_family)
        });
        Ok(destinations.collect())
    }

    /// Adds a destination to a virtual server.
    ///
    /// # Errors
    /// `EEXIST` when it is there, `ESRCH` without the server.
    pub fn add_destination(
        &mut self,
        id: ServerId,
        to: SocketAddr,
        weight: u32,
    ) -> Result<(), Error> {
        self.write_destination(IPVS_CMD_NEW_DEST, "add", id, to, Some(weight))
    }

    /// Changes the weight of a destination.
    ///
    /// # Errors
    /// `ENOENT` when it is not there, `ESRCH` without the server.
    pub fn change_destination(
        &mut self,
        id: ServerId,
        to: SocketAddr,
        weight: u32,
    ) -> Result<(), Error> {
        self.write_destination(IPVS_CMD_SET_DEST, "change", id, to, Some(weight))
    }

    /// Removes a destination, whatever connections it has.
    ///
    /// # Errors
    /// `ENOENT` when it is not there, `ESRCH` without the server.
    pub fn delete_destination(&mut self, id: ServerId, to: SocketAddr) -> Result<(), Error> {
        self.write_destination(IPVS_CMD_DEL_DEST, "remove", id, to, None)
    }

    fn write_server(
        &mut self,
        command: u8,
        what: &str,
        id: ServerId,
        options: Option<&ServerOptions>,
    ) -> Result<(), Error> {
        let mut request = self.request(command)?;
        write_server(&mut request, id, options);
        let scheduler = options.map_or("", |options| &options.scheduler);
        let action = || format!("{what} the virtual server {} {scheduler}", id.address);
        self.socket.call(&request, action).map(drop)
    }

    fn write_destination(
        &mut self,
        command: u8,
        what: &str,
        id: ServerId,
        to: SocketAddr,
        weight: Option<u32>,
    ) -> Result<(), Error> {
        let mut request = self.request(command)?;
        write_server(&mut request, id, None);
        write_destination(&mut request, to, weight);
        let action = || format!("{what} the destination {to} of {}", id.address);
        self.socket.call(&request, action).map(drop)
    }

    fn request(&mut self, command: u8) -> Result<Request, Error> {
        let family = self.number()?;
        Ok(Request::new(family, 0, &[command, IPVS_GENL_VERSION, 0, 0]))
    }

    fn number(&mut self) -> Result<u16, Error> {
        let family = match self.family {
            Some(family) => family,
            None => generic::family(&mut self.socket, IPVS_GENL_NAME)?,
        };
        self.family = Some(family);
        Ok(family)
    }
}

fn write_server(request: &mut Request, id: ServerId, options: Option<&ServerOptions>) {
    request.nested(IPVS_CMD_ATTR_SERVICE, &[], |server| {
        let family = u16::from(family_of(id.address.ip()));
        server
            .attribute(IPVS_SVC_ATTR_AF, &family.to_ne_bytes())
            .attribute(IPVS_SVC_ATTR_PROTOCOL, &u16::from(id.protocol).to_ne_bytes())
            .attribute(IPVS_SVC_ATTR_ADDR, &padded(id.address.ip()))
            .attribute(IPVS_SVC_ATTR_PORT, &id.address.port().to_be_bytes());
        let Some(options) = options else { return };
        let affinity =
            if options.affinity_timeout_s.is_some() { IP_VS_SVC_F_PERSISTENT } else { 0 };
        // A mask, but for IPv6 a prefix length: each client address for itself.
        let netmask = if id.address.is_ipv4() { u32::MAX } else { 128 };
        server
            .text(IPVS_SVC_ATTR_SCHED_NAME, &options.scheduler)
            .attribute(IPVS_SVC_ATTR_FLAGS, &flags(options.flags | affinity, u32::MAX))
            .u32(IPVS_SVC_ATTR_TIMEOUT, options.affinity_timeout_s.unwrap_or_default())
            .u32(IPVS_SVC_ATTR_NETMASK, netmask);
    });
}

fn write_destination(request: &mut Request, to: SocketAddr, weight: Option<u32>) {
    request.nested(IPVS_CMD_ATTR_DEST, &[], |one| {
        let family = u16::from(family_of(to.ip()));
        one.attribute(IPVS_DEST_ATTR_ADDR, &padded(to.ip()))
            .attribute(IPVS_DEST_ATTR_PORT, &to.port().to_be_bytes())
            .attribute(IPVS_DEST_ATTR_ADDR_FAMILY, &family.to_ne_bytes());
        if let Some(weight) = weight {
            one.u32(IPVS_DEST_ATTR_FWD_METHOD, IP_VS_CONN_F_MASQ)
                .u32(IPVS_DEST_ATTR_WEIGHT, weight)
                .u32(IPVS_DEST_ATTR_U_THRESH, 0)
                .u32(IPVS_DEST_ATTR_L_THRESH, 0);
        }
    });
}

/// `struct ip_vs_flags`.
fn flags(flags: u32, mask: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&flags.to_ne_bytes());
    bytes[4..].copy_from_slice(&mask.to_ne_bytes());
    bytes
}

fn padded(address: IpAddr) -> [u8; ADDRESS_BYTES] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; ADDRESS_BYTES];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// `None` for a server that is for a firewall mark, and for what is malformed.
fn read_server(attributes: Attributes<'_>) -> Option<(ServerId, ServerOptions)> {
    let family = u8::try_from(u16_of(attributes.find(IPVS_SVC_ATTR_AF)?)?).ok()?;
    let ip = address_of(attributes.find(IPVS_SVC_ATTR_ADDR)?, family)?;
    let protocol = u8::try_from(u16_of(attributes.find(IPVS_SVC_ATTR_PROTOCOL)?)?).ok()?;
    let address = SocketAddr::new(ip, port_of(attributes.find(IPVS_SVC_ATTR_PORT)?)?);
    let flags = u32_of(attributes.find(IPVS_SVC_ATTR_FLAGS)?)?;
    let timeout_s = attributes.u32(IPVS_SVC_ATTR_TIMEOUT)?;
    let is_sticky = flags & IP_VS_SVC_F_PERSISTENT != 0;
    let options = ServerOptions {
        scheduler: attributes.text(IPVS_SVC_ATTR_SCHED_NAME).unwrap_or_default(),
        flags: flags & !IP_VS_SVC_F_PERSISTENT,
        affinity_timeout_s: is_sticky.then_some(timeout_s),
    };
    Some((ServerId { protocol, address }, options))
}

/// The kernel names the destination's family where it may differ from the server's.
fn read_destination(attributes: Attributes<'_>, own_family: u8) -> Option<Destination> {
    let family = attributes.find(IPVS_DEST_ATTR_ADDR_FAMILY).and_then(u16_of);
    let family = family.and_then(|family| u8::try_from(family).ok()).unwrap_or(own_family);
    let ip = address_of(attributes.find(IPVS_DEST_ATTR_ADDR)?, family)?;
    Some(Destination {
        address: SocketAddr::new(ip, port_of(attributes.find(IPVS_DEST_ATTR_PORT)?)?),
        weight: attributes.u32(IPVS_DEST_ATTR_WEIGHT)?,
        active: attributes.u32(IPVS_DEST_ATTR_ACTIVE_CONNS).unwrap_or_default(),
        inactive: attributes.u32(IPVS_DEST_ATTR_INACT_CONNS).unwrap_or_default(),
    })
}

fn address_of(bytes: &[u8], family: u8) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => {
            let octets: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
            Some(Ipv4Addr::from(octets).into())
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = bytes.get(..16)?.try_into().ok()?;
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}

fn port_of(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message;

    fn written(fill: impl FnOnce(&mut Request)) -> Vec<u8> {
        let mut request = Request::new(0, 0, &[]);
        fill(&mut request);
        request.finish(1, 0)[message::HEADER_BYTES..].to_vec()
    }

    #[test]
    fn what_is_written_of_a_server_is_read_back() {
        for (address, affinity_timeout_s) in
            [("10.96.0.20:80", None), ("[fd00:96::20]:53", Some(10_800))]
        {
            let id = ServerId { protocol: 132, address: address.parse().expect("an address") };
            let options =
                ServerOptions { scheduler: "lc".into(), flags: 0x6600_0000, affinity_timeout_s };
            let bytes = written(|request| write_server(request, id, Some(&options)));
            let attributes = Attributes::new(&bytes).nested(IPVS_CMD_ATTR_SERVICE);
            assert_eq!(attributes.and_then(read_server), Some((id, options)), "{address}");
        }
    }

    #[test]
    fn what_is_written_of_a_destination_is_read_back() {
        for address in ["10.244.0.2:8080", "[fd00:244::2]:8080"] {
            let address = address.parse().expect("an address");
            let bytes = written(|request| write_destination(request, address, Some(7)));
            let attributes = Attributes::new(&bytes).nested(IPVS_CMD_ATTR_DEST);
            let read = attributes.and_then(|one| read_destination(one, 0));
            let expected = Destination { address, weight: 7, active: 0, inactive: 0 };
            assert_eq!(read, Some(expected));
        }
    }

    #[test]
    fn a_server_for_a_firewall_mark_is_passed_over() {
        let bytes = written(|request| {
            request.attribute(IPVS_SVC_ATTR_AF, &2_u16.to_ne_bytes()).u32(5, 77);
        });
        assert_eq!(read_server(Attributes::new(&bytes)), None);
    }

    proptest::proptest! {
        #[test]
        fn any_answer_is_read_without_panic(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)
        ) {
            let _ = read_server(Attributes::new(&bytes));
            let _ = read_destination(Attributes::new(&bytes), 2);
        }
    }
}
