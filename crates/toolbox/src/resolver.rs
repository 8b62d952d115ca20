//! Names to addresses, as the C library does it: `/etc/hosts`, then DNS with the search path.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use dns::message::{CLASS_IN, kind, rcode, rcode_name};
use dns::resolv_conf::ResolvConf;
use dns::{Name, Response, parse_response, query};

/// How long one server has for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often each server is asked.
const ROUNDS: usize = 2;
/// The largest datagram taken, in octets.
const DATAGRAM_OCTETS: usize = 4096;

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum ConnectFault {
    /// The name has no address.
    Name(String),
    /// None of the addresses can be connected to; this is the last error.
    Connection(io::Error),
}

impl fmt::Display for ConnectFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(fault) => f.write_str(fault),
            Self::Connection(error) => write!(f, "{error}"),
        }
    }
}

/// Connects to the first address of a host that answers.
pub(crate) fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, ConnectFault> {
    let addresses = resolve(host).map_err(ConnectFault::Name)?;
    connect_to(&addresses, port, timeout).map_err(ConnectFault::Connection)
}

/// Connects to the first of these addresses that answers.
pub(crate) fn connect_to(
    addresses: &[IpAddr],
    port: u16,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(&SocketAddr::new(*address, port), timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The addresses of a host, IPv4 first; never an empty list.
pub(crate) fn resolve(host: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let listed = std::fs::read_to_string("/etc/hosts").map_or(vec![], |text| in_hosts(&text, host));
    if !listed.is_empty() {
        return Ok(listed);
    }
    if host == "localhost" {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let conf = configuration();
    for candidate in conf.candidates(host) {
        let addresses = addresses_of(&conf.server_addresses(), &candidate)?;
        if !addresses.is_empty() {
            return Ok(addresses);
        }
    }
    Err(format!("{host} has no address in DNS"))
}

/// What the machine's `/etc/resolv.conf` says.
pub(crate) fn configuration() -> ResolvConf {
    ResolvConf::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

/// The addresses of a full name, with aliases followed; none when it has none.
pub(crate) fn addresses_of(servers: &[SocketAddr], name: &str) -> Result<Vec<IpAddr>, String> {
    let mut addresses = Vec::new();
    for kind in [kind::A, kind::AAAA] {
        let response = ask(servers, name, kind, false)?;
        let data = response.answers.iter().filter(|record| record.kind == kind);
        addresses.extend(data.filter_map(|record| address(&record.data)));
        if response.rcode == rcode::NAME_ERROR {
            break;
        }
    }
    Ok(addresses)
}

/// The address in the data of an A or AAAA record.
pub(crate) fn address(data: &[u8]) -> Option<IpAddr> {
    match data.len() {
        4 => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Asks the servers in turn until one answers: success, or that the name does not exist.
pub(crate) fn ask(
    servers: &[SocketAddr],
    name: &str,
    kind: u16,
    over_tcp: bool,
) -> Result<Response, String> {
    let parsed: Name = name.parse().map_err(|error| format!("{name} is no name: {error}"))?;
    let mut last = "/etc/resolv.conf names no server".to_string();
    for _ in 0..ROUNDS {
        for server in servers {
            match ask_one(*server, &parsed, kind, over_tcp) {
                Ok(response) if matches!(response.rcode, rcode::NO_ERROR | rcode::NAME_ERROR) => {
                    return Ok(response);
                }
                Ok(response) => last = format!("{server} says {}", rcode_name(response.rcode)),
                Err(error) => last = format!("{server}: {}", describe(&error)),
            }
        }
    }
    Err(format!("{name} cannot be resolved: {last}"))
}

/// Asks one server once, over TCP also when the answer does not fit into a datagram.
fn ask_one(server: SocketAddr, name: &Name, kind: u16, over_tcp: bool) -> io::Result<Response> {
    let number = getrandom::u32().map_err(|error| io::Error::other(error.to_string()))?;
    let id = number as u16;
    let message = query(id, name, kind, true);
    let is_answer = |response: &Response| {
        response.id == id
            && response.kind == kind
            && response.class == CLASS_IN
            && response.name.is(name)
    };
    if !over_tcp {
        let response = ask_by_datagram(server, &message, is_answer)?;
        if !response.is_truncated() {
            return Ok(response);
        }
    }
    let mut stream = TcpStream::connect_timeout(&server, ANSWER_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[length.to_be_bytes().as_slice(), &message].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    let response = parse_response(&answer).filter(is_answer);
    response.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is malformed"))
}

fn ask_by_datagram(
    server: SocketAddr,
    message: &[u8],
    is_answer: impl Fn(&Response) -> bool,
) -> io::Result<Response> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.send(message)?;
    let end = Instant::now() + ANSWER_TIMEOUT;
    let mut buffer = [0; DATAGRAM_OCTETS];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut buffer)?;
        let response = buffer.get(..length).and_then(parse_response);
        if let Some(response) = response.filter(&is_answer) {
            return Ok(response);
        }
    }
}

/// The text of an error, the same for all that mean the same.
pub(crate) fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "connection reset".into(),
        // A read timeout shows as WouldBlock.
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "timeout".into(),
        io::ErrorKind::UnexpectedEof => "connection closed before the end of the answer".into(),
        _ => error.to_string(),
    }
}

fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
    };
    lines.filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_gives_every_address_of_a_name() {
        let text = "127.0.0.1 localhost # web\n10.0.0.1\tWeb web.shop\nfd00::1 web\nnonsense web\n";
        let found: Vec<String> = in_hosts(text, "web").iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1", "fd00::1"]);
        assert!(in_hosts(text, "shop").is_empty());
    }
}
