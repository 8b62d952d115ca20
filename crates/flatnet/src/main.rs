//! flatnet: the whole Kubernetes network in one program. This file is the table of contents.

mod cluster;
mod commands;
mod demo;
mod output;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The whole Kubernetes network in one program: as the network of a cluster, or with `flatnet up`
/// as a whole cluster on this machine.
#[derive(Parser)]
#[command(version, propagate_version = true, after_help = "Example:\n  flatnet up --demo")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster on this machine.
    Up(commands::up::Arguments),
    /// Stop a cluster and remove every trace of it.
    Down(commands::down::Arguments),
    /// Say what runs and what is wrong.
    Status(commands::status::Arguments),
    /// Print the cluster's kubeconfig, or merge it into another.
    Kubeconfig(commands::kubeconfig::Arguments),
    /// Say what a node's agent has programmed, or run a command in a node's namespaces.
    Node(commands::node::Arguments),
    /// Load, list and remove the images of a cluster on this machine.
    Image(commands::image::Arguments),
    /// Say who has which address of a node, and what is wrong with addresses.
    Ipam(commands::ipam::Arguments),
    /// Show links, addresses and tunnels of nodes: wanted, present, different.
    Links(commands::network::Arguments),
    /// Show routes of nodes: wanted, present, different.
    Routes(commands::network::Arguments),
    /// Show Services as the nodes see them, with their endpoints.
    Service(commands::service::Arguments),
    /// Have ports of pods on this machine, also UDP, and go on when a pod is replaced.
    PortForward(commands::port_forward::Arguments),
    /// Print what makes flatnet the network of a real cluster, for `kubectl apply`.
    Manifests(commands::manifests::Arguments),
    /// Run a node's network agent.
    Agent(commands::agent::Arguments),
    /// Remove everything of flatnet from this node.
    Uninstall(commands::uninstall::Arguments),
    /// Run network plugins by hand, as a container runtime does.
    Cni(commands::cni::Arguments),
    /// Print a completion script for a shell.
    Completion(commands::completion::Arguments),
    /// Start and restart the processes of a cluster (started by `up`).
    #[command(hide = true)]
    Supervise(commands::supervise::Arguments),
    /// Make a node's namespaces (started by `up`).
    #[command(hide = true)]
    NodeInit(commands::node_init::Arguments),
    /// Run the API server and the controllers (started by the supervisor).
    #[command(hide = true)]
    Controlplane(commands::controlplane::Arguments),
    /// Run a node's pods (started by the supervisor).
    #[command(hide = true)]
    Runtime(commands::runtime::Arguments),
    /// Load the kernel modules that a node needs (started by the DaemonSet before the agent).
    #[command(hide = true)]
    LoadModules,
    /// Cluster DNS: check or import a configuration, see who asks what; or run a node's worker.
    Dns(commands::dns::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Up(arguments) => commands::up::run(arguments),
        Command::Down(arguments) => commands::down::run(arguments),
        Command::Status(arguments) => return commands::status::run(arguments),
        Command::Kubeconfig(arguments) => commands::kubeconfig::run(arguments),
        Command::Node(arguments) => return commands::node::run(arguments),
        Command::Links(arguments) => return commands::network::links(arguments),
        Command::Routes(arguments) => return commands::network::routes(arguments),
        Command::Service(arguments) => return commands::service::run(arguments),
        Command::Image(arguments) => commands::image::run(arguments),
        Command::Manifests(arguments) => commands::manifests::run(&arguments),
        Command::PortForward(arguments) => commands::port_forward::run(arguments),
        Command::Uninstall(arguments) => commands::uninstall::run(&arguments),
        Command::Ipam(arguments) => return commands::ipam::run(arguments),
        Command::Cni(arguments) => return commands::cni::run(arguments),
        Command::Completion(arguments) => {
            commands::completion::run::<Arguments>(arguments);
            Ok(())
        }
        Command::Supervise(arguments) => commands::supervise::run(arguments),
        Command::NodeInit(arguments) => commands::node_init::run(arguments),
        Command::Controlplane(arguments) => commands::controlplane::run(arguments),
        Command::Agent(arguments) => commands::agent::run(arguments),
        Command::Runtime(arguments) => commands::runtime::run(arguments),
        Command::LoadModules => {
            commands::load_modules::run();
            Ok(())
        }
        Command::Dns(arguments) => return commands::dns::run(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flatnet: {error:#}");
            ExitCode::FAILURE
        }
    }
}
