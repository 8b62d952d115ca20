//! `/etc/resolv.conf`, as the resolver of the C library reads it (resolv.conf(5)).

use std::net::{IpAddr, SocketAddr};

/// The port of DNS servers.
pub const DNS_PORT: u16 = 53;
/// Name servers read from one file; the C library takes three.
const MAX_NAME_SERVERS: usize = 3;
/// Search domains read from one file, as Kubernetes allows them.
const MAX_SEARCH_DOMAINS: usize = 32;
/// The largest `ndots`, as the C library caps it.
const MAX_NDOTS: usize = 15;

/// What a resolver needs of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    /// The servers, the preferred first.
    pub name_servers: Vec<IpAddr>,
    /// Domains to try below, in order, without final dots.
    pub search: Vec<String>,
    /// A name with at least this many dots is tried as it is first.
    pub ndots: usize,
}

impl ResolvConf {
    /// Reads the text of the file. What cannot be understood is passed over, as everywhere. The
    /// scope of a link-local server is dropped, since it has no meaning elsewhere.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self { name_servers: vec![], search: vec![], ndots: 1 };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address: Option<IpAddr> =
                        words.next().and_then(|word| word.split('%').next()?.parse().ok());
                    let free = MAX_NAME_SERVERS.saturating_sub(conf.name_servers.len());
                    conf.name_servers.extend(address.into_iter().take(free));
                }
                // The last line of its kind wins.
                Some("search" | "domain") => {
                    let domains = words.map(|word| word.trim_end_matches('.').to_string());
                    conf.search = domains
                        .filter(|domain| !domain.is_empty())
                        .take(MAX_SEARCH_DOMAINS)
                        .collect();
                }
                Some("options") => {
                    for word in words {
                        if let Some(Ok(ndots)) = word.strip_prefix("ndots:").map(str::parse) {
                            conf.ndots = usize::min(ndots, MAX_NDOTS);
                        }
                    }
                }
                _ => {}
            }
        }
        conf
    }

    /// The servers with the port of DNS.
    pub fn server_addresses(&self) -> Vec<SocketAddr> {
        self.name_servers.iter().map(|address| SocketAddr::new(*address, DNS_PORT)).collect()
    }

    /// The full names to try for a name, in order. A final dot says that the name is full.
    pub fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(full) = name.strip_suffix('.') {
            return vec![full.to_string()];
        }
        let below = self.search.iter().map(|domain| format!("{name}.{domain}"));
        let as_it_is = std::iter::once(name.to_string());
        if name.matches('.').count() >= self.ndots {
            as_it_is.chain(below).collect()
        } else {
            below.chain(as_it_is).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "# of a pod\nnameserver 10.96.0.10\n\
        search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5 timeout:1\n";

    #[test]
    fn a_pods_file_gives_the_search_path() {
        let conf = ResolvConf::parse(POD);
        assert_eq!(conf.server_addresses(), ["10.96.0.10:53".parse().expect("an address")]);
        assert_eq!(
            conf.candidates("web"),
            ["web.shop.svc.cluster.local", "web.svc.cluster.local", "web.cluster.local", "web"]
        );
        assert_eq!(conf.candidates("a.b.c.d.e.f").first().map(String::as_str), Some("a.b.c.d.e.f"));
        assert_eq!(conf.candidates("example.com."), ["example.com"]);
    }

    #[test]
    fn odd_lines_are_passed_over_and_numbers_are_capped() {
        let conf = ResolvConf::parse(
            "nameserver\nnameserver x\nnameserver fe80::1%eth0\nnameserver 1.1.1.1\n\
             nameserver 2.2.2.2\nnameserver 3.3.3.3\noptions ndots:99\nsearch a\nsearch b. .\n",
        );
        assert_eq!(conf.name_servers.len(), 3);
        assert_eq!(conf.ndots, 15);
        assert_eq!(conf.search, ["b"]);
        assert_eq!(ResolvConf::parse("").ndots, 1);
    }
}
