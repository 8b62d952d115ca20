//! A machine outside the cluster: a network namespace on the node network, with an address that
//! belongs to none of the cluster's ranges.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use netlink::Netns;

use crate::cluster::{Cluster, text_of};
use crate::program;

/// The outside machine's address (RFC 5737).
pub const ADDRESS: &str = "198.51.100.10";
const RANGE: &str = "198.51.100.0/24";

/// The namespace. It goes away with the value.
pub struct Outside {
    name: String,
    network: String,
    servers: Vec<Child>,
}

impl Outside {
    /// Lets `ip netns` arrange its directory, which it does once and leaves so: this is not of the
    /// cluster's making.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn prepare() -> Result<()> {
        let name = "e2e-prepare";
        let _ = ip(&["netns", "delete", name]);
        ip(&["netns", "add", name])?;
        ip(&["netns", "delete", name]).map(drop)
    }

    /// Plugs the machine into the cluster's node network, and tells the nodes the way.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn attach(cluster: &Cluster, node_range: &str) -> Result<Self> {
        let name = format!("{}-outside", cluster.name);
        let network = format!("{}-net", cluster.name);
        let _ = ip(&["netns", "delete", &name]);
        ip(&["netns", "add", &name])?;
        let outside = Self { name, network: network.clone(), servers: vec![] };
        let inside: &str = &outside.name;
        ip(&[
            "-n", &network, "link", "add", "outside", "type", "veth", "peer", "name", "eth0",
            "netns", inside,
        ])?;
        ip(&["-n", &network, "link", "set", "outside", "master", "nodes", "up"])?;
        ip(&["-n", inside, "link", "set", "lo", "up"])?;
        ip(&["-n", inside, "link", "set", "eth0", "up"])?;
        ip(&["-n", inside, "address", "add", &format!("{ADDRESS}/24"), "dev", "eth0"])?;
        ip(&["-n", inside, "route", "add", node_range, "dev", "eth0"])?;
        for node in &cluster.nodes {
            let namespace = format!("{}-{node}", cluster.name);
            ip(&["-n", &namespace, "route", "replace", RANGE, "dev", "eth0"])?;
        }
        Ok(outside)
    }

    /// Runs a toolbox command there.
    ///
    /// # Errors
    /// Its standard error, when it fails.
    pub fn toolbox(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).stdin(Stdio::null()).output()?;
        text_of(output).with_context(|| format!("outside: toolbox {}", arguments.join(" ")))
    }

    /// Starts a toolbox server there; it ends with this value.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn serve(&mut self, arguments: &[&str]) -> Result<()> {
        self.servers.push(self.command(arguments).stdin(Stdio::null()).spawn()?);
        Ok(())
    }

    /// A UDP socket of the machine that is connected to an address: one client that stays the
    /// same for as long as it lives.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the socket not be made.
    pub fn udp_client(&self, server: &str) -> Result<UdpSocket> {
        let namespace = self.network()?;
        let connect = || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(server).map(|()| socket)
        };
        Ok(namespace.run(connect)??)
    }

    /// The machine's network namespace.
    ///
    /// # Errors
    /// When it is gone.
    pub fn network(&self) -> Result<Netns> {
        Ok(Netns::open(&Path::new("/run/netns").join(&self.name))?)
    }

    /// A toolbox command that will run there.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program("flatnet-toolbox")).args(arguments);
        command
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        // Not left to the end of the namespace, which the kernel reaches later: another machine
        // of this name may follow at once.
        let _ = ip(&["-n", &self.network, "link", "delete", "outside"]);
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(arguments).output().context("starting ip")?;
    text_of(output).with_context(|| format!("ip {}", arguments.join(" ")))
}
