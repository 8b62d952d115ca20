//! The rules of Services as kube-proxy 1.33 lays them out, for its own programs: chains of iptables
//! (`KUBE-SERVICES` to `KUBE-SVC-…` to `KUBE-SEP-…`), and for nftables a chain a Service with an
//! anonymous map over the chains of its endpoints (KEP-3866). For ClusterIPs of TCP.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

/// Of pods: whoever else asks is masqueraded.
const PODS: &str = "10.244.0.0/16";

/// One port of a Service.
pub struct Service {
    /// Distinguishes it, and thereby its chains.
    pub number: u32,
    /// Its ClusterIP.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Whoever answers.
    pub endpoints: Vec<SocketAddr>,
}

/// How rules get into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// By `iptables-restore` of the legacy variant.
    Iptables,
    /// By `nft`.
    Nftables,
}

impl Layout {
    /// All of a first synchronisation.
    pub fn all(self, services: &[Service]) -> String {
        match self {
            Self::Iptables => iptables(services, &|_| true),
            Self::Nftables => nft_all(services),
        }
    }

    /// What kube-proxy writes when a Service has other endpoints than `before`. With iptables that
    /// is the chains of the Service, and all of `KUBE-SERVICES` again.
    pub fn change(self, services: &[Service], changed: usize, before: &[SocketAddr]) -> String {
        let service = &services[changed];
        match self {
            Self::Iptables => {
                let mut text = iptables(services, &|one| one.number == service.number);
                let gone = before.iter().filter(|one| !service.endpoints.contains(one));
                let chains: Vec<String> = gone.map(|one| endpoint_chain(service, one)).collect();
                let own: String =
                    chains.iter().map(|chain| format!(":{chain} - [0:0]\n")).collect();
                let deleted: String = chains.iter().map(|chain| format!("-X {chain}\n")).collect();
                let commit = text.rfind("COMMIT").unwrap_or(text.len());
                text.insert_str(commit, &deleted);
                text.replacen("*nat\n", &format!("*nat\n{own}"), 1)
            }
            Self::Nftables => nft_change(service, before),
        }
    }

    /// Gives rules to the layout's own program, in the calling thread's network namespace.
    pub fn write(self, rules: &str) {
        let mut program = match self {
            Self::Iptables => Command::new("iptables-legacy-restore"),
            Self::Nftables => Command::new("nft"),
        };
        match self {
            Self::Iptables => program.args(["-w", "5", "--noflush", "--counters"]),
            Self::Nftables => program.args(["-f", "-"]),
        };
        let mut child = program.stdin(Stdio::piped()).spawn().expect("the program");
        let mut input = child.stdin.take().expect("its input");
        input.write_all(rules.as_bytes()).expect("it reads");
        drop(input);
        assert!(child.wait().expect("it ends").success(), "{program:?} takes the rules");
    }
}

fn service_name(service: &Service) -> String {
    format!("shop/web-{}:http", service.number)
}

/// The real ones end with a hash of as many letters.
fn service_chain(service: &Service) -> String {
    format!("KUBE-SVC-{:016X}", service.number)
}

fn endpoint_chain(service: &Service, endpoint: &SocketAddr) -> String {
    format!("KUBE-SEP-{:06X}{:010X}", service.number, place(endpoint))
}

/// Distinguishes the endpoints of a Service.
fn place(endpoint: &SocketAddr) -> u64 {
    match endpoint.ip() {
        IpAddr::V4(address) => {
            u64::from(u32::from(address)) << 8 | u64::from(endpoint.port() & 0xff)
        }
        IpAddr::V6(_) => unreachable!("the benchmark is one of IPv4"),
    }
}

fn iptables(services: &[Service], has_chains: &dyn Fn(&Service) -> bool) -> String {
    let mut text = String::from(FILTER);
    text.push_str("*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n");
    text.push_str(":KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n");
    let mut rules = String::new();
    for service in services {
        let (name, chain) = (service_name(service), service_chain(service));
        let to = format!("-m tcp -p tcp -d {} --dport {}", service.address, service.port);
        let comment = format!("-m comment --comment \"{name} cluster IP\"");
        let _ = writeln!(rules, "-A KUBE-SERVICES {comment} {to} -j {chain}");
        if !has_chains(service) {
            continue;
        }
        let _ = writeln!(text, ":{chain} - [0:0]");
        let _ = writeln!(rules, "-A {chain} {comment} {to} ! -s {PODS} -j KUBE-MARK-MASQ");
        let count = service.endpoints.len();
        for (index, endpoint) in service.endpoints.iter().enumerate() {
            let own = endpoint_chain(service, endpoint);
            let _ = writeln!(text, ":{own} - [0:0]");
            let _ = write!(rules, "-A {chain} -m comment --comment \"{name} -> {endpoint}\"");
            if index + 1 < count {
                let chance = 1.0 / (count - index) as f64;
                let _ = write!(rules, " -m statistic --mode random --probability {chance:.10}");
            }
            let _ = writeln!(rules, " -j {own}");
            let comment = format!("-m comment --comment {name}");
            let from = format!("-s {} -j KUBE-MARK-MASQ", endpoint.ip());
            let _ = writeln!(rules, "-A {own} {comment} {from}");
            let to = format!("-m tcp -p tcp -j DNAT --to-destination {endpoint}");
            let _ = writeln!(rules, "-A {own} {comment} {to}");
        }
    }
    text.push_str(&rules);
    text.push_str(NAT_REST);
    text
}

const FILTER: &str = "*filter
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A KUBE-FIREWALL -m comment --comment \"block incoming localnet connections\" -d 127.0.0.0/8 \
    ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark \
    --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack \
    --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";
const NAT_REST: &str =
    "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: \
    this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" \
    -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
COMMIT
";

/// The jumps from the kernel's own chains, which kube-proxy makes one by one.
pub const IPTABLES_JUMPS: &str = "*filter
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
COMMIT
";

fn nft_service_chain(service: &Service) -> String {
    format!("service-{:08X}-shop/web-{}/tcp/http", service.number, service.number)
}

fn nft_endpoint_chain(service: &Service, endpoint: &SocketAddr) -> String {
    let Service { number, .. } = service;
    let (address, port) = (endpoint.ip(), endpoint.port());
    format!("endpoint-{number:08X}-shop/web-{number}/tcp/http__{address}/{port}")
}

/// Chains and rules, in the order in which kube-proxy's transactions have them.
fn nft_all(services: &[Service]) -> String {
    let mut text = String::from(NFT_BASE);
    for service in services {
        for endpoint in &service.endpoints {
            let chain = nft_endpoint_chain(service, endpoint);
            let _ = writeln!(text, "add chain ip kube-proxy {chain}");
        }
        let _ = writeln!(text, "add chain ip kube-proxy {}", nft_service_chain(service));
    }
    for service in services {
        nft_rules(&mut text, service, &[]);
        let Service { address, port, .. } = service;
        let chain = nft_service_chain(service);
        let _ = writeln!(text, "add element ip kube-proxy cluster-ips {{ {address} }}");
        let _ = writeln!(
            text,
            "add element ip kube-proxy service-ips {{ {address} . tcp . {port} : goto {chain} }}"
        );
    }
    text
}

fn nft_change(service: &Service, before: &[SocketAddr]) -> String {
    let mut text = String::new();
    for endpoint in service.endpoints.iter().filter(|one| !before.contains(one)) {
        let chain = nft_endpoint_chain(service, endpoint);
        let _ = writeln!(text, "add chain ip kube-proxy {chain}");
    }
    let _ = writeln!(text, "flush chain ip kube-proxy {}", nft_service_chain(service));
    nft_rules(&mut text, service, before);
    for endpoint in before.iter().filter(|one| !service.endpoints.contains(one)) {
        let chain = nft_endpoint_chain(service, endpoint);
        let _ = writeln!(text, "flush chain ip kube-proxy {chain}");
        let _ = writeln!(text, "delete chain ip kube-proxy {chain}");
    }
    text
}

/// Of the Service, and of its endpoints that were not there before.
fn nft_rules(text: &mut String, service: &Service, before: &[SocketAddr]) {
    for endpoint in service.endpoints.iter().filter(|one| !before.contains(one)) {
        let chain = nft_endpoint_chain(service, endpoint);
        let own = format!("add rule ip kube-proxy {chain}");
        let _ = writeln!(text, "{own} ip saddr {} jump mark-for-masquerade", endpoint.ip());
        let _ = writeln!(text, "{own} meta l4proto tcp dnat to {endpoint}");
    }
    let Service { address, port, endpoints, .. } = service;
    let own = format!("add rule ip kube-proxy {}", nft_service_chain(service));
    let _ = writeln!(
        text,
        "{own} ip daddr {address} tcp dport {port} ip saddr != {PODS} jump mark-for-masquerade"
    );
    let ways: Vec<String> = endpoints
        .iter()
        .enumerate()
        .map(|(index, one)| format!("{index} : goto {}", nft_endpoint_chain(service, one)))
        .collect();
    let _ =
        writeln!(text, "{own} numgen random mod {} vmap {{ {} }}", ways.len(), ways.join(" , "));
}

const NFT_BASE: &str = "add table ip kube-proxy
add chain ip kube-proxy mark-for-masquerade
add rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000
add chain ip kube-proxy masquerading
add rule ip kube-proxy masquerading mark and 0x4000 == 0 return
add rule ip kube-proxy masquerading mark set mark xor 0x4000
add rule ip kube-proxy masquerading masquerade fully-random
add chain ip kube-proxy reject-chain
add rule ip kube-proxy reject-chain reject
add set ip kube-proxy cluster-ips { type ipv4_addr ; }
add set ip kube-proxy nodeport-ips { type ipv4_addr ; }
add map ip kube-proxy no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict ; }
add map ip kube-proxy no-endpoint-nodeports { type inet_proto . inet_service : verdict ; }
add map ip kube-proxy firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }
add map ip kube-proxy service-nodeports { type inet_proto . inet_service : verdict ; }
add chain ip kube-proxy services
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add chain ip kube-proxy cluster-ips-check
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject
add chain ip kube-proxy service-endpoints-check
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
add chain ip kube-proxy firewall-check
add rule ip kube-proxy firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
add chain ip kube-proxy filter-prerouting { type filter hook prerouting priority -110 ; }
add rule ip kube-proxy filter-prerouting ct state new jump firewall-check
add chain ip kube-proxy filter-input { type filter hook input priority -110 ; }
add rule ip kube-proxy filter-input ct state new jump service-endpoints-check
add chain ip kube-proxy filter-forward { type filter hook forward priority -110 ; }
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add chain ip kube-proxy filter-output { type filter hook output priority -110 ; }
add rule ip kube-proxy filter-output ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump firewall-check
add chain ip kube-proxy filter-output-post-dnat { type filter hook output priority -90 ; }
add rule ip kube-proxy filter-output-post-dnat ct state new jump cluster-ips-check
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority dstnat ; }
add rule ip kube-proxy nat-prerouting jump services
add chain ip kube-proxy nat-output { type nat hook output priority -100 ; }
add rule ip kube-proxy nat-output jump services
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority srcnat ; }
add rule ip kube-proxy nat-postrouting jump masquerading
";
