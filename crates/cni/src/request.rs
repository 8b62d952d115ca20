//! [`Request`]: what the environment asks for.

use std::net::IpAddr;
use std::path::PathBuf;

use model::{MacAddress, NamespacedName};

use crate::fault::{Fault, INVALID_ENVIRONMENT};

/// Bytes that a link name may have (`IFNAMSIZ` less the final zero).
const INTERFACE_BYTES_MAX: usize = 15;
/// Keys of `CNI_ARGS` that runtimes send and that change nothing here.
const IGNORED_ARGUMENTS: [&str; 2] = ["K8S_POD_INFRA_CONTAINER_ID", "GATEWAY"];
/// Bytes that a container id may have: its record's file name holds it and the interface.
const CONTAINER_ID_BYTES_MAX: usize = 200;

/// The commands of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Puts a container on the network.
    Add,
    /// Takes it off again.
    Del,
    /// Compares what is with what ADD left.
    Check,
    /// Says whether an ADD would work.
    Status,
    /// Removes what belongs to no living container.
    Gc,
    /// Says the versions that the plugin speaks.
    Version,
}

/// One request, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// The container; empty where the command has none.
    pub container_id: String,
    /// The interface inside the container; empty where the command has none.
    pub interface: String,
    /// The container's network namespace; `None` for a DEL after it is gone.
    pub namespace: Option<PathBuf>,
    /// Addresses that `CNI_ARGS` asks for.
    pub requested_addresses: Vec<IpAddr>,
    /// The MAC address that `CNI_ARGS` asks for.
    pub requested_mac: Option<MacAddress>,
    /// The pod, where `CNI_ARGS` names it.
    pub pod: Option<NamespacedName>,
    /// The pod's UID; empty where nobody said.
    pub pod_uid: String,
    /// Where other plugins are.
    pub plugin_path: Vec<PathBuf>,
}

impl Request {
    /// Reads and checks the environment.
    ///
    /// # Errors
    /// Code 4, naming every variable that is missing or the one that is wrong.
    pub fn parse(variable: &impl Fn(&str) -> Option<String>) -> Result<Self, Fault> {
        let value = |name: &str| variable(name).filter(|value| !value.is_empty());
        let command = parse_command(value("CNI_COMMAND"))?;
        let required: &[&str] = match command {
            Command::Add | Command::Check => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"],
            Command::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Command::Gc => &["CNI_PATH"],
            Command::Status | Command::Version => &[],
        };
        let missing: Vec<&str> =
            required.iter().copied().filter(|name| value(name).is_none()).collect();
        if !missing.is_empty() {
            return Err(Fault::new(
                INVALID_ENVIRONMENT,
                format!("required variables are missing: {}", missing.join(", ")),
                "the container runtime must set them",
            ));
        }
        let mut request = Self {
            command,
            container_id: String::new(),
            interface: String::new(),
            namespace: None,
            requested_addresses: vec![],
            requested_mac: None,
            pod: None,
            pod_uid: String::new(),
            plugin_path: value("CNI_PATH").map(directories).unwrap_or_default(),
        };
        if matches!(command, Command::Add | Command::Check | Command::Del) {
            request.container_id = value("CNI_CONTAINERID").unwrap_or_default();
            request.interface = value("CNI_IFNAME").unwrap_or_default();
            request.namespace = value("CNI_NETNS").map(PathBuf::from);
            check_container_id(&request.container_id)?;
            check_interface(&request.interface)?;
            parse_arguments(&value("CNI_ARGS").unwrap_or_default(), &mut request)?;
        }
        Ok(request)
    }
}

/// Whether a text has the form that the specification asks of container ids and network names:
/// alphanumeric first, then also `_`, `.` and `-`.
pub fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn parse_command(value: Option<String>) -> Result<Command, Fault> {
    let details = "it is one of ADD, DEL, CHECK, STATUS, GC and VERSION; container runtimes set it";
    let Some(value) = value else {
        let message = "required variables are missing: CNI_COMMAND";
        return Err(Fault::new(INVALID_ENVIRONMENT, message, details));
    };
    Ok(match value.as_str() {
        "ADD" => Command::Add,
        "DEL" => Command::Del,
        "CHECK" => Command::Check,
        "STATUS" => Command::Status,
        "GC" => Command::Gc,
        "VERSION" => Command::Version,
        _ => {
            let message = format!("unknown CNI_COMMAND: {value}");
            return Err(Fault::new(INVALID_ENVIRONMENT, message, details));
        }
    })
}

/// The directories of a `CNI_PATH`. Relative ones would depend on where the runtime was started.
fn directories(path: String) -> Vec<PathBuf> {
    std::env::split_paths(&path).filter(|one| one.is_absolute()).collect()
}

pub(crate) fn check_container_id(container_id: &str) -> Result<(), Fault> {
    if container_id.len() > CONTAINER_ID_BYTES_MAX {
        return Err(Fault::new(
            INVALID_ENVIRONMENT,
            "CNI_CONTAINERID is too long",
            format!("it has more than {CONTAINER_ID_BYTES_MAX} bytes"),
        ));
    }
    if is_identifier(container_id) {
        return Ok(());
    }
    Err(Fault::new(
        INVALID_ENVIRONMENT,
        format!("invalid characters in CNI_CONTAINERID: {container_id:?}"),
        "it starts with a letter or digit; letters, digits, '_', '.' and '-' follow",
    ))
}

pub(crate) fn check_interface(interface: &str) -> Result<(), Fault> {
    let fault = if interface.len() > INTERFACE_BYTES_MAX {
        format!("it has more than {INTERFACE_BYTES_MAX} bytes")
    } else if matches!(interface, "." | "..") {
        "it is a directory's name".to_owned()
    } else if interface.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        "it holds '/', ':' or white space".to_owned()
    } else {
        return Ok(());
    };
    Err(Fault::new(INVALID_ENVIRONMENT, format!("invalid CNI_IFNAME: {interface:?}"), fault))
}

/// What `IP=` and `MAC=` ask for. Keys that nobody knows are an error, unless `IgnoreUnknown` is
/// true: a mistyped one must not be lost silently.
fn parse_arguments(text: &str, request: &mut Request) -> Result<(), Fault> {
    let mut unknown = Vec::new();
    let mut ignore_unknown = false;
    let mut pod = NamespacedName::default();
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let invalid = |details: String| {
            Fault::new(INVALID_ENVIRONMENT, format!("invalid CNI_ARGS pair: {pair:?}"), details)
        };
        let (key, value) =
            pair.split_once('=').ok_or_else(|| invalid("write it as KEY=VALUE".into()))?;
        match key {
            "IgnoreUnknown" => {
                ignore_unknown = parse_flag(value)
                    .ok_or_else(|| invalid("IgnoreUnknown is true or false".into()))?;
            }
            "IP" => {
                for text in value.split(',') {
                    let address = parse_address(text)
                        .ok_or_else(|| invalid(format!("{text:?} is no IP address")))?;
                    request.requested_addresses.push(address);
                }
            }
            "MAC" => request.requested_mac = Some(value.parse().map_err(invalid)?),
            "K8S_POD_NAMESPACE" => pod.namespace = value.to_owned(),
            "K8S_POD_NAME" => pod.name = value.to_owned(),
            "K8S_POD_UID" => request.pod_uid = value.to_owned(),
            _ if IGNORED_ARGUMENTS.contains(&key) => {}
            _ => unknown.push(pair),
        }
    }
    if !unknown.is_empty() && !ignore_unknown {
        return Err(Fault::new(
            INVALID_ENVIRONMENT,
            format!("unknown CNI_ARGS: {}", unknown.join(", ")),
            "remove them, or add IgnoreUnknown=1",
        ));
    }
    request.pod = Some(pod).filter(|pod| !pod.name.is_empty());
    Ok(())
}

/// An address, with or without a prefix length.
pub(crate) fn parse_address(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}

fn parse_flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Request, Fault> {
        Request::parse(&|name: &str| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    /// A complete ADD with some variables changed.
    fn add_with<'a>(changes: &[(&'a str, &'a str)]) -> Result<Request, Fault> {
        let mut pairs = changes.to_vec();
        pairs.extend([
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/run/netns/c1"),
        ]);
        parse(&pairs)
    }

    #[test]
    fn missing_variables_are_all_named_with_code_4() {
        let rows: [(&[(&str, &str)], &str); 5] = [
            (&[], "CNI_COMMAND"),
            (&[("CNI_COMMAND", "add")], "unknown CNI_COMMAND: add"),
            (&[("CNI_COMMAND", "ADD")], "CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS"),
            (&[("CNI_COMMAND", "DEL"), ("CNI_IFNAME", "eth0")], "CNI_CONTAINERID"),
            (&[("CNI_COMMAND", "GC")], "CNI_PATH"),
        ];
        for (pairs, expected) in rows {
            let fault = parse(pairs).expect_err(expected);
            assert_eq!(fault.code, INVALID_ENVIRONMENT);
            assert!(fault.message.contains(expected), "{fault} should name {expected}");
        }
    }

    #[test]
    fn each_command_needs_no_more_than_it_uses() {
        let del = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")];
        assert_eq!(parse(&del).expect("no namespace needed").namespace, None);
        for command in ["VERSION", "STATUS"] {
            parse(&[("CNI_COMMAND", command)]).expect(command);
        }
        parse(&[("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")]).expect("GC");
    }

    #[test]
    fn identifiers_and_interfaces_have_the_form_of_the_specification() {
        for id in ["c1", "0", "a_b.c-d", "Z9"] {
            add_with(&[("CNI_CONTAINERID", id)]).expect(id);
        }
        for id in ["-c", ".c", "c/1", "c 1", "ü", "../x"] {
            let fault = add_with(&[("CNI_CONTAINERID", id)]).expect_err(id);
            assert_eq!(fault.code, INVALID_ENVIRONMENT, "{id}");
        }
        add_with(&[("CNI_IFNAME", "exactly15bytes.")]).expect("15 bytes");
        for name in ["sixteen-bytes-xx", ".", "..", "a/b", "a:b", "a b", "a\tb"] {
            let fault = add_with(&[("CNI_IFNAME", name)]).expect_err(name);
            assert!(fault.message.contains("CNI_IFNAME"), "{fault}");
        }
    }

    #[test]
    fn arguments_are_known_or_refused_or_ignored_on_request() {
        let add = add_with(&[(
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAME=web;COLOR=red;IP=10.0.0.9;MAC=0a:58:00:00:00:09",
        )])
        .expect("unknown ones ignored");
        assert_eq!(add.requested_mac, "0a:58:00:00:00:09".parse().ok());
        assert_eq!(add.requested_addresses, ["10.0.0.9".parse::<IpAddr>().expect("an address")]);
        add_with(&[("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;")]).expect("known");
        for wrong in [
            "COLOR=red",
            "IgnoreUnknown=0;COLOR=red",
            "IP=ten",
            "IP",
            "MAC=0a:58",
            "IgnoreUnknown=yes",
        ] {
            let fault = add_with(&[("CNI_ARGS", wrong)]).expect_err(wrong);
            assert_eq!(fault.code, INVALID_ENVIRONMENT, "{wrong}");
        }
    }
}
