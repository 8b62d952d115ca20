//! Numbers of the agent in the Prometheus text format, version 0.0.4. What kube-proxy has too
//! bears its name, so that dashboards and alerts go on; the process itself, the names of the client
//! libraries.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::Timestamp;
use reconcile::ChangeCounts;

use crate::health::AgentStatus;
use crate::paths;

/// Upper bounds of a synchronisation: kube-proxy's, 1 ms doubled.
const SYNC_BUCKETS: u32 = 15;
/// Bytes of a file below `/proc` that are read.
const PROC_BYTES_MAX: u64 = 64 * 1024;

/// How long things took.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Histogram {
    /// Upper bounds in seconds, and how many took no longer.
    buckets: Vec<(f64, u64)>,
    count: u64,
    sum_seconds: f64,
}

impl Histogram {
    pub(crate) fn with_bounds(bounds_seconds: impl Iterator<Item = f64>) -> Self {
        let buckets = bounds_seconds.map(|bound| (bound, 0)).collect();
        Self { buckets, count: 0, sum_seconds: 0.0 }
    }

    pub(crate) fn record(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (bound, count) in &mut self.buckets {
            if seconds <= *bound {
                *count += 1;
            }
        }
        self.count += 1;
        self.sum_seconds += seconds;
    }

    pub(crate) fn print(&self, text: &mut String, name: &str, help: &str) {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} histogram\n");
        for (bound, count) in &self.buckets {
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(text, "{name}_sum {}\n{name}_count {}", self.sum_seconds, self.count);
    }
}

/// The bounds of kube-proxy's `network_programming_duration_seconds`: a quarter of a second up to
/// five minutes.
fn programming_bounds() -> impl Iterator<Item = f64> {
    let steps = |first: u32, step: u32, count: u32| {
        (0..count).map(move |number| f64::from(first + step * number))
    };
    [0.25, 0.5].into_iter().chain(steps(1, 1, 59)).chain(steps(60, 5, 12)).chain(steps(120, 30, 7))
}

/// What is counted besides the status.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measures {
    /// From the first look at the kernel to the last operation of a turn.
    pub(crate) sync: Histogram,
    /// From the change of a pod or Service that endpoints follow to the kernel.
    pub(crate) programming: Histogram,
    /// What became of changes that the API told.
    pub(crate) changes: ChangeCounts,
    /// When the API told of a change last, in seconds since 1970.
    pub(crate) last_queued_seconds: f64,
    /// When the kernel held last what was planned, in seconds since 1970.
    pub(crate) last_sync_seconds: f64,
    /// Operations that the kernel refused.
    pub(crate) failures_total: u64,
    /// Of these, transactions of nftables and of iptables.
    pub(crate) nftables_failures_total: u64,
    pub(crate) iptables_failures_total: u64,
    /// Questions to `/healthz`, by answer.
    pub(crate) healthz: Answers,
    /// Questions to `/livez`, by answer.
    pub(crate) livez: Answers,
}

impl Default for Measures {
    fn default() -> Self {
        let sync = (0..SYNC_BUCKETS).map(|number| 0.001 * f64::from(1_u32 << number));
        Self {
            sync: Histogram::with_bounds(sync),
            programming: Histogram::with_bounds(programming_bounds()),
            changes: ChangeCounts::default(),
            last_queued_seconds: 0.0,
            last_sync_seconds: 0.0,
            failures_total: 0,
            nftables_failures_total: 0,
            iptables_failures_total: 0,
            healthz: Answers::default(),
            livez: Answers::default(),
        }
    }
}

impl Measures {
    /// The kernel holds `now` what was triggered then. What was triggered before this process
    /// started waited for the start, not for it.
    pub(crate) fn record_programmed(
        &mut self,
        triggers: impl Iterator<Item = Timestamp>,
        started: Timestamp,
        now: Timestamp,
    ) {
        for trigger in triggers.filter(|trigger| *trigger > started) {
            self.programming.record(now.since(trigger));
        }
    }
}

/// Answers by HTTP status code.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answers(BTreeMap<u16, u64>);

impl Answers {
    pub(crate) fn count(&mut self, code: hyper::StatusCode) {
        *self.0.entry(code.as_u16()).or_default() += 1;
    }

    fn print(&self, text: &mut String, name: &str, help: &str) {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n");
        for (code, count) in &self.0 {
            let _ = writeln!(text, "{name}{{code=\"{code}\"}} {count}");
        }
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The whole page.
pub(crate) fn text(status: &AgentStatus, measures: &Measures) -> String {
    let mut text = String::new();
    let flag = |value: bool| f64::from(u8::from(value));
    let number = |value: usize| value as f64;
    let rows = [
        ("flatnet_synced", "gauge", "Whether the API's objects were listed.", flag(status.synced)),
        (
            "flatnet_converged",
            "gauge",
            "Whether the kernel holds what was planned.",
            flag(status.converged),
        ),
        ("flatnet_services", "gauge", "Services in the kernel.", number(status.services)),
        ("flatnet_peers", "gauge", "Nodes with a way to their pods.", number(status.peers)),
        (
            "flatnet_failover_unreachable_nodes",
            "gauge",
            "Nodes that get no new connections, because they do not answer this one.",
            number(status.unreachable.nodes.len()),
        ),
        (
            "flatnet_failover_unreachable_endpoints",
            "gauge",
            "Single endpoints that get none for the same reason.",
            number(status.unreachable.endpoints.len()),
        ),
        ("flatnet_problems", "gauge", "Problems known now.", number(status.problems.len())),
        (
            "flatnet_kernel_operations_total",
            "counter",
            "Operations on the kernel that were carried out.",
            status.operations_total as f64,
        ),
        (
            "flatnet_kernel_operation_failures_total",
            "counter",
            "Operations on the kernel that were refused.",
            measures.failures_total as f64,
        ),
    ];
    print_rows(&mut text, &rows);
    proxy(&mut text, measures);
    repairs(&mut text, status);
    forwarding(&mut text, status);
    addresses(&mut text, status);
    paths(&mut text, status);
    process(&mut text);
    text
}

fn print_rows(text: &mut String, rows: &[(&str, &str, &str, f64)]) {
    for (name, kind, help, value) in rows {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    }
}

fn no_local_endpoints(text: &mut String, changes: &ChangeCounts) {
    let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    let help = "Ports of Services with a Local policy and endpoints on other nodes alone.";
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
    for (policy, number) in
        [("internal", changes.no_local_internal), ("external", changes.no_local_external)]
    {
        let _ = writeln!(text, "{name}{{traffic_policy=\"{policy}\"}} {number}");
    }
}

/// kube-proxy's own numbers, as far as they mean something here.
fn proxy(text: &mut String, measures: &Measures) {
    let changes = &measures.changes;
    let rows = [
        (
            "kubeproxy_sync_proxy_rules_service_changes_pending",
            "gauge",
            "Services whose changes the kernel does not hold yet.",
            changes.services_pending as f64,
        ),
        (
            "kubeproxy_sync_proxy_rules_service_changes_total",
            "counter",
            "Changes of Services.",
            changes.services_total as f64,
        ),
        (
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            "gauge",
            "Services whose changes of endpoints the kernel does not hold yet.",
            changes.endpoints_pending as f64,
        ),
        (
            "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            "counter",
            "Changes of EndpointSlices.",
            changes.endpoints_total as f64,
        ),
        (
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "gauge",
            "When the API told of a change last.",
            measures.last_queued_seconds,
        ),
        (
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "gauge",
            "When the kernel held last what was planned.",
            measures.last_sync_seconds,
        ),
        (
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
            "counter",
            "Transactions of nftables that the kernel refused.",
            measures.nftables_failures_total as f64,
        ),
        (
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
            "counter",
            "Transactions of iptables that were refused.",
            measures.iptables_failures_total as f64,
        ),
    ];
    print_rows(text, &rows);
    no_local_endpoints(text, changes);
    measures.healthz.print(text, "kubeproxy_proxy_healthz_total", "Answers of /healthz.");
    measures.livez.print(text, "kubeproxy_proxy_livez_total", "Answers of /livez.");
    measures.sync.print(
        text,
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "How long a turn of the loop worked on the kernel.",
    );
    measures.programming.print(
        text,
        "kubeproxy_network_programming_duration_seconds",
        "From the change that endpoints follow to the kernel.",
    );
}

fn forwarding(text: &mut String, status: &AgentStatus) {
    let name = "flatnet_forwarding_packets_total";
    let help = "Packets at the programs of eBPF forwarding by what became of them.";
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n");
    for (result, count) in &status.forwarding.packets {
        let _ = writeln!(text, "{name}{{result=\"{result}\"}} {count}");
    }
}

fn repairs(text: &mut String, status: &AgentStatus) {
    let name = "flatnet_repairs_total";
    let _ =
        write!(text, "# HELP {name} What others broke and was put back.\n# TYPE {name} counter\n");
    for (kind, count) in &status.repairs {
        let _ = writeln!(text, "{name}{{kind=\"{kind}\"}} {count}");
    }
}

fn addresses(text: &mut String, status: &AgentStatus) {
    let name = "flatnet_ipam_addresses";
    let _ = write!(text, "# HELP {name} Pod addresses of this node.\n# TYPE {name} gauge\n");
    for pool in &status.pools {
        for (state, count) in [("held", pool.held), ("free", pool.free)] {
            let _ = writeln!(text, "{name}{{range=\"{}\",state=\"{state}\"}} {count}", pool.range);
        }
    }
}

fn paths(text: &mut String, status: &AgentStatus) {
    let name = "flatnet_paths";
    let _ = write!(text, "# HELP {name} Tested paths to other nodes.\n# TYPE {name} gauge\n");
    for (state, number) in paths::count(&status.paths) {
        let _ = writeln!(text, "{name}{{state=\"{state}\"}} {number}");
    }
}

/// The process itself, from `/proc/self`. What cannot be read is left out.
fn process(text: &mut String) {
    let mut gauge = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    };
    let stat = read_proc("/proc/self/stat").unwrap_or_default();
    // The command's name, in parentheses, may hold spaces; the third field follows it.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or(vec![], |(_, rest)| rest.split_whitespace().collect());
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let ticks = sysconf(nix::unistd::SysconfVar::CLK_TCK);
    let cpu = field(14).zip(field(15)).zip(ticks).map(|((user, system), t)| (user + system) / t);
    gauge("process_cpu_seconds_total", "counter", "Processor time used, in seconds.", cpu);
    let page = sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    let resident = field(24).zip(page).map(|(pages, page)| pages * page);
    gauge("process_resident_memory_bytes", "gauge", "Resident memory in bytes.", resident);
    gauge("process_virtual_memory_bytes", "gauge", "Virtual memory in bytes.", field(23));
    let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
    gauge("process_open_fds", "gauge", "Open file descriptors.", open);
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    let limit = limit.ok().map(|(soft, _)| soft as f64);
    gauge("process_max_fds", "gauge", "Limit of open file descriptors.", limit);
    let boot = read_proc("/proc/stat").and_then(|stat| {
        stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok())
    });
    let started = field(22).zip(ticks).zip(boot).map(|((start, ticks), boot)| boot + start / ticks);
    gauge("process_start_time_seconds", "gauge", "When the process started.", started);
}

fn sysconf(variable: nix::unistd::SysconfVar) -> Option<f64> {
    nix::unistd::sysconf(variable).ok().flatten().map(|value| value as f64)
}

fn read_proc(path: &str) -> Option<String> {
    use std::io::Read as _;
    let mut text = String::new();
    fs::File::open(path).ok()?.take(PROC_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Pool;

    fn page() -> String {
        let mut measures = Measures::default();
        measures.sync.record(Duration::from_millis(3));
        measures.changes = ChangeCounts {
            services_total: 11,
            services_pending: 2,
            endpoints_total: 23,
            endpoints_pending: 5,
            no_local_internal: 3,
            no_local_external: 4,
        };
        (measures.last_queued_seconds, measures.last_sync_seconds) = (1_700_000_001.5, 1.7e9);
        measures.nftables_failures_total = 6;
        measures.iptables_failures_total = 8;
        measures.healthz.count(hyper::StatusCode::OK);
        measures.livez.count(hyper::StatusCode::SERVICE_UNAVAILABLE);
        let at = |seconds: i64| Timestamp::from_microseconds(seconds * 1_000_000 / 2);
        // Half seconds: 3.5 s, half a second, and one from before the start.
        let triggers = [at(13), at(19), at(1)];
        measures.record_programmed(triggers.into_iter(), at(2), at(20));
        let status = AgentStatus {
            services: 3,
            repairs: [("route".to_owned(), 2)].into(),
            pools: vec![Pool { range: "10.244.1.0/24".into(), held: 4, free: 249 }],
            ..AgentStatus::default()
        };
        text(&status, &measures)
    }

    #[test]
    fn values_stand_behind_their_names() {
        let page = page();
        for line in [
            "flatnet_services 3",
            "flatnet_repairs_total{kind=\"route\"} 2",
            "flatnet_ipam_addresses{range=\"10.244.1.0/24\",state=\"held\"} 4",
            "flatnet_ipam_addresses{range=\"10.244.1.0/24\",state=\"free\"} 249",
            "kubeproxy_sync_proxy_rules_service_changes_pending 2",
            "kubeproxy_sync_proxy_rules_service_changes_total 11",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 5",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 23",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\"} 3",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"} 4",
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds 1700000001.5",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds 1700000000",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total 6",
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total 8",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "kubeproxy_proxy_livez_total{code=\"503\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.002\"} 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"16.384\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_count 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.25\"} 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.5\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"3\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"4\"} 2",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"300\"} 2",
            "kubeproxy_network_programming_duration_seconds_sum 4",
            "kubeproxy_network_programming_duration_seconds_count 2",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
        for name in ["process_cpu_seconds_total", "process_resident_memory_bytes"] {
            let value = page.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            assert!(value.is_some_and(|value| value.parse::<f64>().is_ok()), "{name} in\n{page}");
        }
    }

    #[test]
    fn every_line_is_of_the_text_format() {
        let page = page();
        let mut typed = std::collections::BTreeSet::new();
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let name = rest.split(' ').next().expect("a name");
                assert!(typed.insert(name.to_owned()), "{name} is declared once");
            } else if !line.starts_with("# HELP ") {
                let (name, value) = line.rsplit_once(' ').expect("a name and a value");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                let base = name.split('{').next().expect("a name");
                let known = ["", "_bucket", "_sum", "_count"].iter().any(|suffix| {
                    base.strip_suffix(suffix).is_some_and(|base| typed.contains(base))
                });
                assert!(known, "{line} comes before its type");
            }
        }
    }
}
