//! `flatnet ipam`: who has which address of a node, why one is not free, what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use clap::{Subcommand, ValueEnum};
use cni::config::{Addressing, BuiltIn, Config};
use ipam::explain::{self, AddressState, Known, Problem, RangeUse, Seen, State};
use ipam::{Directory, RangeSet, Reservation, Withheld};
use model::{Attachment, Timestamp, layout};
use netlink::{Netlink, Netns};
use serde::Serialize;
use serde_json::{Value, json};

use super::{ClusterName, require_root};
use crate::cluster::supervisor::node_place;
use crate::output::{Format, print, table};

/// Bytes of a network configuration that are read at most.
const CONFIGURATION_BYTES_MAX: u64 = 1 << 20;
/// Network configurations and state directories that are read at most.
const NETWORKS_MAX: usize = 1024;
/// Container ids are cut to so many characters in tables, as container tools do.
const SHORT_ID_CHARACTERS: usize = 12;
/// Something is wrong with an address.
const EXIT_PROBLEMS: u8 = 1;

/// Arguments of `flatnet ipam`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flatnet ipam show\n  flatnet ipam show 10.244.1.5 --node node1\n  \
                  flatnet ipam check --output json\n  flatnet ipam release 10.244.1.5"
)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Say of every address that is not free who has it, since when, or why else.
    #[command(after_help = "Example:\n  flatnet ipam show 10.244.1.5")]
    Show {
        /// Only this address; also when it is free.
        address: Option<IpAddr>,
        #[command(flatten)]
        place: Place,
    },
    /// Find addresses that nobody uses any more, and such as two pods have.
    #[command(after_help = "Exit codes: 0 all is well, 1 something is wrong.\n\n\
                      Example:\n  flatnet ipam check")]
    Check {
        #[command(flatten)]
        place: Place,
    },
    /// Give an address back whose pod is gone.
    #[command(after_help = "Example:\n  flatnet ipam release 10.244.1.5")]
    Release {
        /// The address.
        address: IpAddr,
        /// Also when its pod lives, or nobody knows: then it may be given twice.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        place: Place,
    },
}

/// Which node, and how to print.
#[derive(clap::Args)]
struct Place {
    /// A node of a cluster that `flatnet up` made; this machine when absent.
    #[arg(long)]
    node: Option<String>,
    #[command(flatten)]
    cluster: ClusterName,
    /// Where the container runtime finds its network configurations.
    #[arg(long, default_value = layout::CNI_CONFIGURATION_DIRECTORY)]
    config_directory: PathBuf,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// One network as its configuration says, and its state on this node.
struct Network {
    name: String,
    sets: Vec<RangeSet>,
    withheld: Withheld,
    data_directory: PathBuf,
    record_directory: PathBuf,
    reservations: BTreeMap<IpAddr, Reservation>,
    released: BTreeMap<IpAddr, Timestamp>,
    records: Vec<Attachment>,
}

#[derive(Serialize)]
struct Overview {
    addresses: Vec<AddressState>,
    ranges: Vec<RangeUse>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Released {
    network: String,
    address: IpAddr,
    #[serde(rename = "containerID")]
    container_id: String,
    interface: String,
}

/// Carries out the action. The exit code of `check` says whether all is well.
pub fn run(arguments: Arguments) -> ExitCode {
    match carry_out(&arguments.action) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("flatnet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(action: &Action) -> Result<ExitCode> {
    require_root("looking into a node's addresses")?;
    let (Action::Show { place, .. } | Action::Check { place } | Action::Release { place, .. }) =
        action;
    if let Some(node) = &place.node {
        return inside(node, action, place);
    }
    let networks = networks(&place.config_directory)?;
    match action {
        Action::Show { address, .. } => show(&networks, *address, place.output),
        Action::Check { .. } => check(&networks, place.output),
        Action::Release { address, force, .. } => {
            release(&networks, *address, *force, place.output)
        }
    }
}

/// The same command in a node's namespaces, where the usual paths are the node's own.
fn inside(node: &str, action: &Action, place: &Place) -> Result<ExitCode> {
    let (paths, spec) = place.cluster.load()?;
    if !spec.nodes.iter().any(|known| known.name == node) {
        let names: Vec<&str> = spec.nodes.iter().map(|node| node.name.as_str()).collect();
        bail!("there is no node {node:?}: the nodes are {}", names.join(", "));
    }
    let own = std::env::current_exe().context("cannot find the own program")?;
    let mut command = std::process::Command::new(own);
    command.arg("ipam");
    match action {
        Action::Show { address, .. } => {
            command.arg("show").args(address.map(|address| address.to_string()));
        }
        Action::Check { .. } => {
            command.arg("check");
        }
        Action::Release { address, force, .. } => {
            command.arg("release").arg(address.to_string());
            command.args(force.then_some("--force"));
        }
    }
    command.arg("--config-directory").arg(&place.config_directory);
    if let Some(format) = place.output.to_possible_value() {
        command.args(["--output", format.get_name()]);
    }
    node_place(&paths, node)?.enter_in(&mut command, vec![])?;
    let status = command.status().with_context(|| format!("starting flatnet on {node}"))?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

fn show(networks: &[Network], address: Option<IpAddr>, format: Format) -> Result<ExitCode> {
    let now = now();
    let known = networks.iter().map(|network| network.known(now));
    let overview = match address {
        None => Overview {
            addresses: known.clone().flat_map(|known| explain::overview(&known)).collect(),
            ranges: known.flat_map(|known| explain::ranges(&known)).collect(),
        },
        Some(address) => {
            let all = known.map(|known| explain::explain(&known, address));
            let (outside, addresses): (Vec<_>, Vec<_>) =
                all.partition(|one| one.state == State::Outside);
            if addresses.is_empty() {
                let names: Vec<String> = outside.into_iter().map(|one| one.network).collect();
                bail!("{address} is of no network of this node; it has {}", or_none(&names));
            }
            Overview { addresses, ranges: vec![] }
        }
    };
    print(format, &overview, || overview_text(&overview))?;
    Ok(ExitCode::SUCCESS)
}

fn check(networks: &[Network], format: Format) -> Result<ExitCode> {
    let now = now();
    let mut problems: Vec<Problem> = Vec::new();
    let mut node = Netlink::open()?;
    for network in networks {
        let seen: Vec<Seen> = network
            .records
            .iter()
            .map(|record| look_at(&mut node, record))
            .collect::<Result<_>>()?;
        problems.extend(explain::check(&network.known(now), &seen));
    }
    let known: Vec<Known<'_>> = networks.iter().map(|network| network.known(now)).collect();
    problems.extend(explain::check_across(&known));
    let held: usize = networks.iter().map(|network| network.reservations.len()).sum();
    print(format, &problems, || match problems.len() {
        0 => format!("nothing is wrong with the {held} held addresses\n"),
        _ => problems.iter().map(|one| format!("{}: {}\n", one.address, one.problem)).collect(),
    })?;
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_PROBLEMS) })
}

fn release(networks: &[Network], address: IpAddr, force: bool, format: Format) -> Result<ExitCode> {
    let holding: Vec<&Network> =
        networks.iter().filter(|network| network.reservations.contains_key(&address)).collect();
    if holding.is_empty() {
        bail!("nobody holds {address}: see `flatnet ipam show {address}`");
    }
    if !force {
        holding.iter().try_for_each(|network| refuse_living(network, address))?;
    }
    let mut released = Vec::new();
    for network in holding {
        let directory = Directory::open(&network.data_directory, &network.name)?;
        // What was looked at before the lock may have changed hands since.
        let before = &network.reservations[&address];
        if directory.release_where(now(), |held| held == before)?.is_empty() {
            bail!("{address} has changed hands meanwhile: look again");
        }
        released.push(Released {
            network: network.name.clone(),
            address,
            container_id: before.container_id.clone(),
            interface: before.interface.clone(),
        });
    }
    print(format, &released, || {
        let line = |one: &Released| {
            format!("released {} of {} ({})\n", one.address, one.network, short(&one.container_id))
        };
        released.iter().map(line).collect()
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses to free what a pod has, or may have.
fn refuse_living(network: &Network, address: IpAddr) -> Result<()> {
    let held = &network.reservations[&address];
    if held.container_id.is_empty() {
        return Ok(());
    }
    let is_its = |record: &&Attachment| {
        record.container_id == held.container_id
            && (held.interface.is_empty() || record.interface == held.interface)
    };
    let id = short(&held.container_id);
    match network.records.iter().find(is_its) {
        Some(record) if Netns::open(Path::new(&record.namespace)).is_err() => Ok(()),
        Some(_) => bail!(
            "container {id} lives and has {address}: delete its pod, or add --force if two pods \
             may have one address"
        ),
        None => bail!(
            "{address} is reserved for container {id}, of which this node has no record (another \
             plugin may have added it): add --force if that container is gone"
        ),
    }
}

fn look_at(node: &mut Netlink, record: &Attachment) -> Result<Seen> {
    let link = match record.link.node_end() {
        Some(name) => node.link(name)?.is_some(),
        None => true,
    };
    let Ok(namespace) = Netns::open(Path::new(&record.namespace)) else {
        return Ok(Seen { namespace: false, link, addresses: BTreeSet::new() });
    };
    let found = Netlink::open_in(&namespace)?.addresses(None)?;
    let addresses = found.into_iter().map(|one| one.address.addr()).collect();
    Ok(Seen { namespace: true, link, addresses })
}

impl Network {
    fn new(name: &str, addressing: BuiltIn, record_directory: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            sets: addressing.ranges,
            withheld: addressing.withheld,
            data_directory: addressing.data_directory,
            record_directory,
            reservations: BTreeMap::new(),
            released: BTreeMap::new(),
            records: vec![],
        }
    }

    fn known(&self, now: Timestamp) -> Known<'_> {
        Known {
            network: &self.name,
            sets: &self.sets,
            withheld: &self.withheld,
            reservations: &self.reservations,
            released: &self.released,
            records: &self.records,
            now,
        }
    }

    fn load(&mut self) -> Result<()> {
        if let Some(directory) = Directory::open_existing(&self.data_directory, &self.name)? {
            self.reservations = directory.reservations()?;
            self.released = directory.released()?;
        }
        let records = cni::records::of_all_networks(&self.record_directory)?;
        self.records = records.into_iter().filter(|one| one.network == self.name).collect();
        Ok(())
    }
}

/// The networks that configurations name, and those that left addresses behind.
fn networks(config_directory: &Path) -> Result<Vec<Network>> {
    let mut networks: BTreeMap<(PathBuf, String), Network> = BTreeMap::new();
    for path in files(config_directory)? {
        let extension = path.extension().and_then(|extension| extension.to_str());
        if !matches!(extension, Some("conflist" | "conf" | "json")) {
            continue;
        }
        let context = || format!("cannot understand {}", path.display());
        let text = read_bounded(&path).with_context(context)?;
        let value: Value = serde_json::from_str(&text).with_context(context)?;
        for network in configured(&value).with_context(context)? {
            networks.insert((network.data_directory.clone(), network.name.clone()), network);
        }
    }
    // What no configuration names any more is looked for where nothing else was asked for.
    let default = PathBuf::from(layout::IPAM_DIRECTORY);
    let is_usual = config_directory == Path::new(layout::CNI_CONFIGURATION_DIRECTORY);
    let left = if is_usual { files(&default)? } else { vec![] };
    for path in left.into_iter().filter(|path| path.is_dir()) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let left = BuiltIn { data_directory: default.clone(), ..BuiltIn::default() };
        networks
            .entry((default.clone(), name.to_owned()))
            .or_insert_with(|| Network::new(name, left, layout::CNI_RECORD_DIRECTORY.into()));
    }
    let mut networks: Vec<Network> = networks.into_values().collect();
    networks.iter_mut().try_for_each(Network::load)?;
    Ok(networks)
}

/// The networks of a configuration whose addresses we give out, or host-local does: of each
/// plugin only what concerns addresses is read.
fn configured(list: &Value) -> Result<Vec<Network>> {
    let alone = std::slice::from_ref(list);
    let plugins = list.get("plugins").and_then(Value::as_array).map_or(alone, Vec::as_slice);
    let mut networks = Vec::new();
    for plugin in plugins {
        let only = json!({
            "name": list.get("name"),
            "type": plugin.get("type"),
            "ipam": plugin.get("ipam"),
            "dataDir": plugin.get("dataDir"),
        });
        if only["ipam"].is_null() {
            continue;
        }
        let config = Config::parse(&only, cni::version::NEWEST.to_owned())?;
        if let Addressing::BuiltIn(addressing) = config.addressing {
            networks.push(Network::new(&config.network, *addressing, config.data_directory));
        }
    }
    Ok(networks)
}

/// What is in a directory, by name; nothing where there is none.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("cannot read {}", directory.display());
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.with_context(context)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        if paths.len() == NETWORKS_MAX {
            bail!("{} has more than {NETWORKS_MAX} files", directory.display());
        }
        paths.push(entry.with_context(context)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn read_bounded(path: &Path) -> Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(CONFIGURATION_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn overview_text(overview: &Overview) -> String {
    let header = ["ADDRESS", "NETWORK", "STATE", "HOLDER", "INTERFACE", "SINCE"];
    let rows: Vec<[String; 6]> = overview.addresses.iter().map(row).collect();
    let mut text = table(header, &rows);
    if !overview.ranges.is_empty() {
        let row = |one: &RangeUse| {
            let free = one.free.map_or("many".to_owned(), |free| free.to_string());
            let (held, resting) = (one.held.to_string(), one.resting.to_string());
            [one.range.clone(), one.network.clone(), held, free, resting]
        };
        let rows: Vec<[String; 5]> = overview.ranges.iter().map(row).collect();
        text.push('\n');
        text.push_str(&table(["RANGE", "NETWORK", "HELD", "FREE", "RESTING"], &rows));
    }
    text
}

fn row(one: &AddressState) -> [String; 6] {
    let [state, holder, interface, since] = match &one.state {
        State::Held { container_id, interface, pod, since } => {
            let id = short(container_id);
            let holder = pod.as_ref().map_or_else(|| id.clone(), |pod| format!("{pod} ({id})"));
            ["held".into(), holder, interface.clone(), since.to_string()]
        }
        State::Torn { since } => {
            ["held, by nobody known".into(), String::new(), String::new(), since.to_string()]
        }
        State::Resting { released, until } => {
            let state = format!("free, rests until {until}");
            [state, String::new(), String::new(), released.to_string()]
        }
        State::Gateway => plain("gateway"),
        State::Network => plain("network"),
        State::Broadcast => plain("broadcast"),
        State::Reserved => plain("reserved by configuration"),
        State::OnRequest => plain("free on request"),
        State::Free => plain("free"),
        State::Outside => plain("outside of the ranges"),
    };
    [one.address.to_string(), one.network.clone(), state, holder, interface, since]
}

fn plain(state: &str) -> [String; 4] {
    [state.to_owned(), String::new(), String::new(), String::new()]
}

fn short(container_id: &str) -> String {
    container_id.chars().take(SHORT_ID_CHARACTERS).collect()
}

fn or_none(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_microseconds(since.as_micros().try_into().unwrap_or_default())
}
