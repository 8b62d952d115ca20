//! `flatnet cni`: runs network plugins by hand, as a container runtime does.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cni::config::ValidAttachment;
use cni::fault::Fault;
use cni::runtime_side::{CACHE_DIRECTORY, Driver, List, Target};
use model::layout;
use model::mac::fnv1a;
use serde_json::{Map, Value, json};

use super::require_root;
use crate::output::{Format, print};

/// Where `ip netns` keeps the namespaces that have names.
const NAMESPACES: &str = "/run/netns";

/// Arguments of `flatnet cni`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    ip netns add try && flatnet cni add flatnet try\n  \
    flatnet cni check flatnet try\n  \
    flatnet cni del flatnet try && ip netns del try\n  \
    flatnet cni status flatnet\n\n\
    Exit codes: 0 done, 1 refused; standard output then has the plugin's error as one document.")]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Put a network namespace on a network, and print the result.
    #[command(after_help = "Examples:\n  flatnet cni add flatnet try\n  \
        flatnet cni add flatnet /run/netns/try --ifname net1 \\\n    \
        --capabilities '{\"portMappings\": [{\"hostPort\": 8080, \"containerPort\": 80}]}'")]
    Add(Attachment),
    /// Take it off again. What is not there is no error.
    #[command(after_help = "Example:\n  flatnet cni del flatnet try")]
    Del(Attachment),
    /// Compare what is with what `add` made.
    #[command(after_help = "Example:\n  flatnet cni check flatnet try")]
    Check(Attachment),
    /// Say whether an `add` would work.
    #[command(after_help = "Example:\n  flatnet cni status flatnet")]
    Status(Network),
    /// Remove all that belongs to none of the given attachments.
    #[command(
        after_help = "Examples:\n  flatnet cni gc flatnet --valid c1/eth0 --valid c2/eth0\n  \
        flatnet cni gc flatnet --all   # nothing lives any more"
    )]
    Gc {
        /// A living attachment.
        #[arg(long, value_name = "CONTAINER/IFNAME", required_unless_present = "all")]
        valid: Vec<String>,
        /// Remove everything.
        #[arg(long, conflicts_with = "valid")]
        all: bool,
        #[command(flatten)]
        network: Network,
    },
    /// Say which versions the plugins of a network speak.
    #[command(after_help = "Example:\n  flatnet cni version flatnet --output json")]
    Version(Network),
}

/// Which network, and where its things are.
#[derive(clap::Args)]
struct Network {
    /// The network's name: the key `name` of its configuration.
    network: String,
    /// Directory of network configurations.
    #[arg(long, default_value = layout::CNI_CONFIGURATION_DIRECTORY)]
    config_directory: PathBuf,
    /// Directories of plugins, with colons between.
    #[arg(long, default_value = layout::CNI_PLUGIN_DIRECTORY)]
    plugin_path: String,
    /// Directory of results, which are kept until `del`.
    #[arg(long, default_value = CACHE_DIRECTORY)]
    cache_directory: PathBuf,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// Which interface of which container.
#[derive(clap::Args)]
struct Attachment {
    #[command(flatten)]
    network: Network,
    /// The network namespace: a path, or a name that `ip netns` knows.
    namespace: String,
    /// The interface inside.
    #[arg(long, default_value = "eth0")]
    ifname: String,
    /// The container; derived from the namespace's path when absent.
    #[arg(long)]
    container_id: Option<String>,
    /// CNI_ARGS, for instance "IgnoreUnknown=1;K8S_POD_NAME=web".
    #[arg(long, default_value = "")]
    args: String,
    /// What plugins get by their capabilities, as a JSON object.
    #[arg(long, default_value = "{}")]
    capabilities: String,
}

/// Carries out the action.
pub fn run(arguments: Arguments) -> ExitCode {
    let (Action::Add(Attachment { network, .. })
    | Action::Del(Attachment { network, .. })
    | Action::Check(Attachment { network, .. })
    | Action::Status(network)
    | Action::Version(network)
    | Action::Gc { network, .. }) = &arguments.action;
    let told = carry_out(&arguments.action, network).and_then(|answer| match answer {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(fault) => {
            eprintln!("flatnet: {fault}");
            let version = cni::version::NEWEST;
            print(network.output, &fault.to_json(version), String::new)?;
            Ok(ExitCode::FAILURE)
        }
    });
    told.unwrap_or_else(|error| {
        eprintln!("flatnet: {error:#}");
        ExitCode::FAILURE
    })
}

/// Faults of plugins are answers; other errors are ours.
fn carry_out(action: &Action, network: &Network) -> Result<Result<(), Fault>> {
    require_root("running network plugins")?;
    let driver = Driver {
        plugin_path: std::env::split_paths(&network.plugin_path).collect(),
        cache_directory: network.cache_directory.clone(),
    };
    let list = match List::named(&network.config_directory, &network.network) {
        Ok(list) => list,
        Err(fault) => return Ok(Err(fault)),
    };
    Ok(match action {
        Action::Add(attachment) => match add(&driver, &list, &attachment.target()?) {
            Ok(result) => {
                print(network.output, &result, || result_text(&result))?;
                Ok(())
            }
            Err(fault) => Err(fault),
        },
        Action::Del(attachment) => driver.del(&list, &attachment.target()?),
        Action::Check(attachment) => driver.check(&list, &attachment.target()?),
        Action::Status(_) => driver.status(&list),
        Action::Gc { valid, .. } => {
            let living: Vec<ValidAttachment> =
                valid.iter().map(|text| valid_attachment(text)).collect::<Result<_>>()?;
            driver.gc(&list, &living)
        }
        Action::Version(_) => match driver.versions(&list) {
            Ok(answers) => {
                let all: Vec<Value> = answers
                    .into_iter()
                    .map(|(kind, answer)| {
                        json!({ "type": kind, "supportedVersions": answer["supportedVersions"] })
                    })
                    .collect();
                print(network.output, &all, || versions_text(&all))?;
                Ok(())
            }
            Err(fault) => Err(fault),
        },
    })
}

/// Nothing half made stays. An interface that was there before is not touched: ADD of one that is
/// kept in the cache is refused before any plugin runs, and then so is nothing deleted.
fn add(driver: &Driver, list: &List, target: &Target) -> Result<Value, Fault> {
    driver.add(list, target).map_err(|fault| {
        if driver.is_added(list, target) {
            return fault;
        }
        match driver.del(list, target) {
            Ok(()) => fault,
            Err(also) => {
                let details =
                    format!("{}; and what was made is not removed: {also}", fault.details);
                Fault { details, ..fault }
            }
        }
    })
}

impl Attachment {
    fn target(&self) -> Result<Target> {
        let namespace = match Path::new(&self.namespace) {
            path if path.is_absolute() => path.to_owned(),
            _ if self.namespace.contains('/') => {
                bail!("the namespace {:?} is neither an absolute path nor a name", self.namespace)
            }
            name => Path::new(NAMESPACES).join(name),
        };
        let derived = || format!("flatnet-{:08x}", fnv1a(namespace.as_os_str().as_encoded_bytes()));
        let arguments = self.args.split(';').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair
                .split_once('=')
                .with_context(|| format!("--args: {pair:?} is not written as KEY=VALUE"))?;
            Ok((key.to_owned(), value.to_owned()))
        });
        let capabilities: Map<String, Value> =
            serde_json::from_str(&self.capabilities).context("--capabilities is no JSON object")?;
        Ok(Target {
            container_id: self.container_id.clone().unwrap_or_else(derived),
            namespace,
            interface: self.ifname.clone(),
            arguments: arguments.collect::<Result<_>>()?,
            capabilities,
        })
    }
}

fn valid_attachment(text: &str) -> Result<ValidAttachment> {
    match text.split_once('/') {
        Some((container_id, interface)) if !container_id.is_empty() && !interface.is_empty() => {
            Ok(ValidAttachment { container_id: container_id.into(), interface: interface.into() })
        }
        _ => bail!("--valid: {text:?} is not written as CONTAINER/IFNAME"),
    }
}

/// A result for people: a line an address, and a line a route.
fn result_text(result: &Value) -> String {
    let part = |value: &Value, key: &str| value[key].as_str().unwrap_or("-").to_owned();
    let mut text = String::new();
    for address in result["ips"].as_array().into_iter().flatten() {
        let index = address["interface"].as_u64().and_then(|index| usize::try_from(index).ok());
        let interface = index.and_then(|index| result["interfaces"].get(index));
        let interface = interface.map_or_else(|| "-".into(), |interface| part(interface, "name"));
        let (own, gateway) = (part(address, "address"), part(address, "gateway"));
        let _ = writeln!(text, "address {own} on {interface}, gateway {gateway}");
    }
    for route in result["routes"].as_array().into_iter().flatten() {
        let _ = writeln!(text, "route {} by {}", part(route, "dst"), part(route, "gw"));
    }
    text
}

fn versions_text(all: &[Value]) -> String {
    let mut text = String::new();
    for one in all {
        let versions = one["supportedVersions"].as_array().into_iter().flatten();
        let versions: Vec<&str> = versions.filter_map(Value::as_str).collect();
        let kind = one["type"].as_str().unwrap_or("-");
        let _ = writeln!(text, "{kind}: {}", versions.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(namespace: &str, args: &str) -> Attachment {
        Attachment {
            network: Network {
                network: "net".into(),
                config_directory: "/etc".into(),
                plugin_path: "/opt".into(),
                cache_directory: "/var".into(),
                output: Format::Text,
            },
            namespace: namespace.into(),
            ifname: "eth0".into(),
            container_id: None,
            args: args.into(),
            capabilities: r#"{"ips":["10.0.0.9"]}"#.into(),
        }
    }

    #[test]
    fn namespaces_are_paths_or_names_and_give_the_same_container_each_time() {
        let by_name = attachment("try", "IgnoreUnknown=1;A=b=c").target().expect("a target");
        let by_path = attachment("/run/netns/try", "").target().expect("a target");
        assert_eq!(by_name.namespace, by_path.namespace);
        assert_eq!(by_name.container_id, by_path.container_id);
        let expected = [("IgnoreUnknown", "1"), ("A", "b=c")];
        assert_eq!(by_name.arguments, expected.map(|(key, value)| (key.into(), value.into())));
        assert_eq!(by_name.capabilities["ips"], json!(["10.0.0.9"]));
        for (namespace, args) in [("a/b", ""), ("try", "A")] {
            assert!(attachment(namespace, args).target().is_err(), "{namespace} {args}");
        }
    }

    #[test]
    fn results_and_attachments_are_written_for_people() {
        let result = json!({
            "interfaces": [{ "name": "veth1" }, { "name": "eth0" }],
            "ips": [{ "address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 1 }],
            "routes": [{ "dst": "0.0.0.0/0" }],
        });
        let expected = "address 10.1.0.5/24 on eth0, gateway 10.1.0.1\nroute 0.0.0.0/0 by -\n";
        assert_eq!(result_text(&result), expected);
        let valid = valid_attachment("c1/eth0").expect("an attachment");
        assert_eq!((valid.container_id.as_str(), valid.interface.as_str()), ("c1", "eth0"));
        for wrong in ["c1", "/eth0", "c1/"] {
            assert!(valid_attachment(wrong).is_err(), "{wrong}");
        }
    }
}
