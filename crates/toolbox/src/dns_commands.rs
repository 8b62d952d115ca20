//! `dns`, short like `dig +short`, and `nslookup`, as people know it.

use std::net::{IpAddr, SocketAddr};

use dns::message::{kind, kind_number, rcode};
use dns::resolv_conf::DNS_PORT;

use crate::arguments::Arguments;
use crate::resolver;
use crate::{CommandResult, Outcome};

/// `dns NAME [TYPE] [--server IP[:PORT]] [--tcp]`: the data of the answer, a line each. The name
/// is taken as full: the search path is for `nslookup`.
pub(crate) fn dns(arguments: &Arguments) -> CommandResult {
    let name = arguments.word(0, "NAME")?;
    let kind_text = arguments.words().get(1).map_or("A", String::as_str);
    let unknown = || arguments.misuse(format!("{kind_text} is no record type"));
    let kind = kind_number(kind_text).ok_or_else(unknown)?;
    let servers = match arguments.value("--server") {
        Some(text) => vec![server(arguments, text)?],
        None => resolver::configuration().server_addresses(),
    };
    let response = resolver::ask(&servers, name, kind, arguments.has("--tcp"))?;
    if response.rcode == rcode::NAME_ERROR {
        eprintln!("{name} does not exist (NXDOMAIN)");
        return Ok(Outcome::Failed);
    }
    if response.answers.is_empty() {
        eprintln!("{name} exists, but has no {} records", kind_text.to_ascii_uppercase());
        return Ok(Outcome::Failed);
    }
    for record in &response.answers {
        println!("{}", record.data_text());
    }
    Ok(Outcome::Success)
}

/// `nslookup NAME [SERVER]`.
pub(crate) fn nslookup(arguments: &Arguments) -> CommandResult {
    let name = arguments.word(0, "NAME")?;
    let mut conf = resolver::configuration();
    if let Some(text) = arguments.words().get(1) {
        conf.name_servers = vec![server(arguments, text)?.ip()];
    }
    let servers = conf.server_addresses();
    let Some(first) = servers.first() else {
        return Err("/etc/resolv.conf names no server".into());
    };
    println!("Server:\t\t{}\nAddress:\t{}#{}\n", first.ip(), first.ip(), first.port());
    if let Ok(address) = name.parse::<IpAddr>() {
        return reverse(&servers, address);
    }
    for candidate in conf.candidates(name) {
        let addresses = resolver::addresses_of(&servers, &candidate)?;
        for address in &addresses {
            println!("Name:\t{candidate}\nAddress: {address}");
        }
        if !addresses.is_empty() {
            return Ok(Outcome::Success);
        }
    }
    println!("** server can't find {name}: NXDOMAIN");
    Ok(Outcome::Failed)
}

fn reverse(servers: &[SocketAddr], address: IpAddr) -> CommandResult {
    let name = reverse_name(address);
    let response = resolver::ask(servers, &name, kind::PTR, false)?;
    let mut found = false;
    for record in response.answers.iter().filter(|record| record.kind == kind::PTR) {
        println!("{name}\tname = {}", record.data_text());
        found = true;
    }
    if !found {
        println!("** server can't find {name}: NXDOMAIN");
        return Ok(Outcome::Failed);
    }
    Ok(Outcome::Success)
}

/// The name that points back to an address (RFC 1035, 3.5; RFC 3596, 2.5).
fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            let nibbles =
                octets.iter().rev().map(|octet| format!("{:x}.{:x}.", octet & 15, octet >> 4));
            nibbles.collect::<String>() + "ip6.arpa"
        }
    }
}

fn server(arguments: &Arguments, text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT));
    address
        .or_else(|_| text.parse())
        .map_err(|_| arguments.misuse(format!("{text} is no address of a server")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_names_are_in_the_right_order() {
        let name = |text: &str| reverse_name(text.parse().expect("an address"));
        assert_eq!(name("10.96.0.1"), "1.0.96.10.in-addr.arpa");
        assert_eq!(
            name("fd00:96::1:2"),
            "2.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa"
        );
    }
}
