//! `flatnet up` refuses what cannot work, says what to do, and leaves nothing half made.

use std::net::TcpListener;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, flatnet};
use e2e::inventory::Inventory;
use e2e::program;
use e2e::runner::{Scenario, run};

const NAME: &str = "e2e-refused";

/// A small cluster beside others.
const RANGES: [&str; 8] = [
    "--nodes",
    "1",
    "--pod-cidr",
    "10.50.0.0/16",
    "--service-cidr",
    "10.51.0.0/16",
    "--node-cidr",
    "172.29.9.0/24",
];

const SCENARIOS: &[Scenario<Inventory>] = &[
    ("overlapping_ranges_are_named_with_both_flags", overlapping_ranges),
    ("too_small_ranges_say_what_is_needed", too_small_ranges),
    ("a_busy_port_is_named", busy_port),
    ("a_range_of_loopback_addresses_is_refused", loopback_range),
    ("a_range_that_the_host_uses_is_named_with_its_route", used_range),
    ("an_ordinary_user_is_told_to_use_sudo", ordinary_user),
    ("a_bad_name_is_refused", bad_name),
    ("a_second_up_of_the_same_name_is_refused_and_harms_nothing", second_up),
    ("a_damaged_state_directory_says_how_to_go_on", damaged_state),
    ("damaged_objects_are_named_and_kept", damaged_objects),
    ("down_of_nothing_is_fine", down_of_nothing),
];

fn main() -> ExitCode {
    let before = match Cluster::take_down_leftovers().and_then(|()| Inventory::take()) {
        Ok(before) => before,
        Err(error) => {
            println!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    match run("refusals", &before, SCENARIOS) {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Runs `up`, which must fail with all these words, and leave the machine as it was.
fn refused(before: &Inventory, arguments: &[&str], words: &[&str]) -> Result<()> {
    let mut all = vec!["up", "--name", NAME];
    all.extend(arguments);
    let output = Command::new(program("flatnet")).args(all).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "it was not refused");
    for word in words {
        ensure!(said.contains(word), "it does not say {word:?}: {said}");
    }
    Inventory::take()?.ensure_same_as(before)
}

fn overlapping_ranges(before: &Inventory) -> Result<()> {
    let ranges = ["--pod-cidr", "10.50.0.0/16", "--service-cidr", "10.50.128.0/20"];
    refused(before, &ranges, &["--pod-cidr 10.50.0.0/16", "--service-cidr 10.50.128.0/20"])
}

fn too_small_ranges(before: &Inventory) -> Result<()> {
    let ranges = ["--nodes", "5", "--pod-cidr", "10.50.0.0/22"];
    refused(before, &ranges, &["--pod-cidr 10.50.0.0/22", "5 nodes need a /24 each"])
}

fn busy_port(before: &Inventory) -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    refused(before, &["--api-port", &port], &[&port, "--api-port"])
}

fn loopback_range(before: &Inventory) -> Result<()> {
    refused(before, &["--node-cidr", "127.0.0.0/24"], &["--node-cidr 127.0.0.0/24", "loopback"])
}

/// A link with a route of its own, which goes away with the value.
struct Link;

impl Link {
    const NAME: &str = "e2e-used";

    fn new(address: &str) -> Result<Self> {
        ip(&["link", "add", Self::NAME, "type", "bridge"])?;
        let link = Self;
        ip(&["address", "add", address, "dev", Self::NAME])?;
        ip(&["link", "set", Self::NAME, "up"])?;
        Ok(link)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = ip(&["link", "delete", Self::NAME]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(arguments).status().context("starting ip")?;
    ensure!(status.success(), "ip {}", arguments.join(" "));
    Ok(())
}

fn used_range(before: &Inventory) -> Result<()> {
    let link = Link::new("172.29.8.1/24")?;
    let with_link = Inventory::take()?;
    let words = ["--node-cidr 172.29.8.0/23", "172.29.8.0/24", Link::NAME];
    refused(&with_link, &["--node-cidr", "172.29.8.0/23"], &words)?;
    drop(link);
    Inventory::take()?.ensure_same_as(before)
}

fn ordinary_user(_: &Inventory) -> Result<()> {
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg("cp")
        .arg(program("flatnet"))
        .arg("/tmp/e2e-flatnet-of-nobody")
        .output()
        .context("starting setpriv")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args(["/tmp/e2e-flatnet-of-nobody", "up", "--name", NAME])
        .output()?;
    std::fs::remove_file("/tmp/e2e-flatnet-of-nobody")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("sudo"), "{said}");
    Ok(())
}

fn bad_name(before: &Inventory) -> Result<()> {
    let output = Command::new(program("flatnet")).args(["up", "--name", "../etc"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("lower-case"), "{said}");
    Inventory::take()?.ensure_same_as(before)
}

fn second_up(before: &Inventory) -> Result<()> {
    let cluster = Cluster::up(NAME, &RANGES)?;
    let output = Command::new(program("flatnet")).args(["up", "--name", NAME]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("runs already"), "{said}");
    cluster.kubectl(&["get", "nodes"]).context("the first cluster was harmed")?;
    drop(cluster);
    Inventory::take()?.ensure_same_as(before)
}

fn damaged_state(before: &Inventory) -> Result<()> {
    let state = std::path::Path::new("/var/lib/flatnet").join(NAME);
    std::fs::create_dir_all(&state)?;
    std::fs::write(state.join("cluster.json"), "{ not json")?;
    let output = Command::new(program("flatnet")).args(["up", "--name", NAME]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    flatnet(&["down", "--name", NAME])?;
    ensure!(!output.status.success(), "it started on a damaged file");
    ensure!(said.contains("is damaged") && said.contains("flatnet down"), "{said}");
    Inventory::take()?.ensure_same_as(before)
}

fn damaged_objects(before: &Inventory) -> Result<()> {
    Cluster::up(NAME, &RANGES)?.keep()?;
    let store = std::path::Path::new("/var/lib/flatnet").join(NAME).join("store.redb");
    std::fs::write(&store, "not a database")?;
    let output = Command::new(program("flatnet")).args(["up", "--name", NAME]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let kept = std::fs::read_to_string(&store);
    flatnet(&["down", "--name", NAME])?;
    ensure!(!output.status.success(), "it started on damaged objects");
    ensure!(said.contains("store.redb"), "{said}");
    ensure!(kept? == "not a database", "the damaged file was not kept for its owner");
    Inventory::take()?.ensure_same_as(before)
}

fn down_of_nothing(before: &Inventory) -> Result<()> {
    let said = flatnet(&["down", "--name", NAME])?;
    ensure!(said.contains("there is no cluster"), "{said}");
    Inventory::take()?.ensure_same_as(before)
}
