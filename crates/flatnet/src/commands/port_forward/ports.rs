//! What is forwarded: `[LOCAL:]PORT[/udp]`.

use std::fmt;

use anyhow::{Context, Result, bail};
use serde::Serialize;

/// The protocols that are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// One port of a pod or Service, and where it is had here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The port of this machine; `None` is the same as `remote`, 0 any that is free.
    pub local: Option<u16>,
    /// A number, or the name of a port.
    pub remote: String,
    /// The protocol.
    pub protocol: Protocol,
}

impl Port {
    /// Reads one argument.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self> {
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, name)) if name.eq_ignore_ascii_case("tcp") => (ports, Protocol::Tcp),
            Some((ports, name)) if name.eq_ignore_ascii_case("udp") => (ports, Protocol::Udp),
            Some((_, name)) => bail!("{text}: {name:?} is neither tcp nor udp"),
        };
        let (local, remote) = match ports.split_once(':') {
            None => (None, ports),
            Some(("", remote)) => (Some(0), remote),
            Some((local, remote)) => {
                let number = local.parse().ok();
                let number = number.with_context(|| format!("{text}: {local:?} is no port"))?;
                (Some(number), remote)
            }
        };
        let is_name = remote.bytes().any(|byte| byte.is_ascii_alphabetic());
        if !is_name && !remote.parse::<u16>().is_ok_and(|number| number > 0) {
            bail!("{text}: {remote:?} is neither a port nor the name of one");
        }
        Ok(Self { local, remote: remote.to_owned(), protocol })
    }

    /// The port to listen on, once it is known what it leads to.
    pub fn local_for(&self, number: u16) -> u16 {
        self.local.unwrap_or_else(|| self.remote.parse().unwrap_or(number))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_or_names_of_either_protocol() {
        let port = |local, remote: &str, protocol| Port { local, remote: remote.into(), protocol };
        let cases = [
            ("80", port(None, "80", Protocol::Tcp)),
            ("8080:80", port(Some(8080), "80", Protocol::Tcp)),
            (":80", port(Some(0), "80", Protocol::Tcp)),
            ("5353:53/udp", port(Some(5353), "53", Protocol::Udp)),
            ("dns/UDP", port(None, "dns", Protocol::Udp)),
            ("0:http/tcp", port(Some(0), "http", Protocol::Tcp)),
        ];
        for (text, expected) in cases {
            assert_eq!(Port::parse(text).expect(text), expected, "{text}");
        }
        for text in ["", "0", "65536", "x:80", "80:", "80/sctp", "1:2:3", "/udp", "-1"] {
            assert!(Port::parse(text).is_err(), "{text}");
        }
        assert_eq!(port(None, "80", Protocol::Tcp).local_for(8080), 80);
        assert_eq!(port(None, "http", Protocol::Tcp).local_for(8080), 8080);
        assert_eq!(port(Some(0), "http", Protocol::Tcp).local_for(8080), 0);
    }
}
