//! Numbers of the agent in the Prometheus text format, version 0.0.4. Names are kube-proxy's
//! behind our prefix where kube-proxy has the same thing, and the client libraries' for the
//! process itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::health::AgentStatus;
use crate::paths;

/// Upper bounds in seconds of the histogram of a synchronisation: kube-proxy's, 1 ms doubled.
const BUCKETS: usize = 15;
/// Bytes of a file below `/proc` that are read.
const PROC_BYTES_MAX: u64 = 64 * 1024;

/// How long things took.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Histogram {
    counts: [u64; BUCKETS],
    count: u64,
    sum_seconds: f64,
}

impl Histogram {
    pub(crate) fn record(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (index, count) in self.counts.iter_mut().enumerate() {
            if seconds <= bound_seconds(index) {
                *count += 1;
            }
        }
        self.count += 1;
        self.sum_seconds += seconds;
    }

    fn print(&self, text: &mut String, name: &str, help: &str) {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} histogram\n");
        for (index, count) in self.counts.iter().enumerate() {
            let _ = writeln!(text, "{name}_bucket{{le=\"{}\"}} {count}", bound_seconds(index));
        }
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(text, "{name}_sum {}\n{name}_count {}", self.sum_seconds, self.count);
    }
}

fn bound_seconds(index: usize) -> f64 {
    0.001 * f64::from(1_u32 << index)
}

/// What is counted besides the status.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Measures {
    /// From the first look at the kernel to the last operation of a turn.
    pub(crate) sync: Histogram,
    /// When the kernel held last what was planned, in seconds since 1970.
    pub(crate) last_sync_seconds: f64,
    /// Operations that the kernel refused.
    pub(crate) failures_total: u64,
    /// Questions to `/healthz`, by answer.
    pub(crate) healthz: Answers,
    /// Questions to `/livez`, by answer.
    pub(crate) livez: Answers,
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
        (
            "flatnet_sync_proxy_rules_last_timestamp_seconds",
            "gauge",
            "When the kernel held last what was planned.",
            measures.last_sync_seconds,
        ),
    ];
    for (name, kind, help, value) in rows {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    }
    repairs(&mut text, status);
    addresses(&mut text, status);
    paths(&mut text, status);
    measures.healthz.print(&mut text, "flatnet_proxy_healthz_total", "Answers of /healthz.");
    measures.livez.print(&mut text, "flatnet_proxy_livez_total", "Answers of /livez.");
    measures.sync.print(
        &mut text,
        "flatnet_sync_proxy_rules_duration_seconds",
        "How long a turn of the loop worked on the kernel.",
    );
    process(&mut text);
    text
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
            "flatnet_sync_proxy_rules_duration_seconds_bucket{le=\"0.002\"} 0",
            "flatnet_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\"} 1",
            "flatnet_sync_proxy_rules_duration_seconds_bucket{le=\"16.384\"} 1",
            "flatnet_sync_proxy_rules_duration_seconds_count 1",
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
