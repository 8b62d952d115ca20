//! What a pod's and a container's `securityContext` come to. Pure.

use crate::capability;
use crate::images::Chosen;
use crate::pod::{Container, Pod, SeccompProfile};
use crate::system_calls::{Document, runtime_default};

/// Kernel parameters that every pod may set: each acts on its own namespaces alone (kubelet's).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];
/// What every pod with a network of its own has: any user may open every port and send echo
/// requests (containerd's).
const DEFAULT_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// Rights of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Capabilities, as the kernel's bit mask.
    pub capabilities: u64,
    /// See [`pause::ContainerSpec`], as the others.
    pub privileged: bool,
    /// Whether /proc is uncut.
    pub whole_proc: bool,
    /// Whether no program gains rights.
    pub no_new_privileges: bool,
    /// The filter of system calls.
    pub system_calls: Vec<u64>,
}

/// Why a container cannot have what it asks for. For people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RightsError {
    /// The pod says something that this node cannot give.
    Config(String),
    /// The file that it names says something that no node can.
    Profile(String),
}

/// What a container may do, on a node whose own root has the capabilities `available`, and, where
/// its [`localhost_profile`] is to be used, whose administrator wrote `profile`.
///
/// # Errors
/// What this node cannot give.
pub fn rights(
    pod: &Pod,
    container: &Container,
    available: u64,
    profile: Option<&Document>,
) -> Result<Rights, RightsError> {
    let own = &container.security_context;
    if own.privileged.unwrap_or(false) {
        let rights = Rights { capabilities: available, privileged: true, ..Rights::default() };
        return Ok(rights);
    }
    let capabilities =
        capability::chosen(&own.capabilities, available).map_err(RightsError::Config)?;
    Ok(Rights {
        capabilities,
        privileged: false,
        whole_proc: own.proc_mount == "Unmasked",
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        system_calls: filter(seccomp(pod, container), capabilities, profile)?,
    })
}

/// The file of a container whose profile is the administrator's.
pub fn localhost_profile<'a>(pod: &'a Pod, container: &'a Container) -> Option<&'a str> {
    let is_privileged = container.security_context.privileged.unwrap_or(false);
    let profile = seccomp(pod, container).filter(|profile| profile.kind == "Localhost");
    profile.filter(|_| !is_privileged).map(|profile| profile.localhost_profile.as_str())
}

fn seccomp<'a>(pod: &'a Pod, container: &'a Container) -> Option<&'a SeccompProfile> {
    let shared = &pod.spec.security_context.seccomp_profile;
    container.security_context.seccomp_profile.as_ref().or(shared.as_ref())
}

/// A container that says nothing has the default profile, as with kubelet's `seccompDefault`.
fn filter(
    wanted: Option<&SeccompProfile>,
    mask: u64,
    document: Option<&Document>,
) -> Result<Vec<u64>, RightsError> {
    let wanted = wanted.map_or("RuntimeDefault", |profile| profile.kind.as_str());
    match (wanted, document) {
        ("Unconfined", _) => Ok(Vec::new()),
        ("RuntimeDefault", _) => runtime_default(mask).instructions().map_err(RightsError::Config),
        ("Localhost", Some(document)) => document
            .profile()
            .and_then(|profile| profile.instructions())
            .map_err(RightsError::Profile),
        (other, _) => Err(RightsError::Config(format!(
            "seccomp profiles of type {other:?} are not served by this node: use RuntimeDefault, \
             Localhost or Unconfined"
        ))),
    }
}

/// Refuses what would run as root where the pod forbids it.
///
/// # Errors
/// The kubelet's words.
pub fn check_user(pod: &Pod, container: &Container, image: &Chosen) -> Result<(), String> {
    let (own, shared) = (&container.security_context, &pod.spec.security_context);
    if !own.run_as_non_root.or(shared.run_as_non_root).unwrap_or(false) {
        return Ok(());
    }
    let problem = match own.run_as_user.or(shared.run_as_user) {
        Some(0) => "container's runAsUser breaks non-root policy".to_owned(),
        Some(_) => return Ok(()),
        None => match image.user_number() {
            Some(0) => "container has runAsNonRoot and image will run as root".to_owned(),
            Some(_) => return Ok(()),
            None => format!(
                "container has runAsNonRoot and image has non-numeric user ({}), cannot verify \
                 user is non-root",
                image.config.user.split(':').next().unwrap_or_default()
            ),
        },
    };
    Err(format!(
        "{problem} (pod: \"{}_{}({})\", container: {})",
        pod.metadata.name, pod.metadata.namespace, pod.metadata.uid, container.name
    ))
}

/// Refuses a pod whose kernel parameters would not be its own alone.
///
/// # Errors
/// The kubelet's words.
pub fn check_sysctls(pod: &Pod) -> Result<(), String> {
    for sysctl in &pod.spec.security_context.sysctls {
        let name = sysctl.name.replace('/', ".");
        let refused = |why: &str| Err(format!("forbidden sysctl: {name:?} {why}"));
        if !SAFE_SYSCTLS.contains(&name.as_str()) {
            return refused("not allowlisted");
        }
        if pod.spec.host_network && name.starts_with("net.") {
            return refused("not allowed with host net enabled");
        }
    }
    Ok(())
}

/// Refuses a pod whose users must not be the node's.
///
/// # Errors
/// The kubelet's words for a runtime that has no user namespaces.
pub fn check_users(pod: &Pod) -> Result<(), String> {
    match pod.spec.host_users {
        Some(false) => Err("can't set `spec.hostUsers: false`, runtime does not support user \
                            namespaces"
            .to_owned()),
        _ => Ok(()),
    }
}

/// The kernel parameters of a pod that [`check_sysctls`] has found nothing against: places below
/// /proc/sys, and values.
pub fn sysctls(pod: &Pod) -> Vec<(String, String)> {
    let defaults = if pod.spec.host_network { &[][..] } else { &DEFAULT_SYSCTLS };
    let defaults = defaults.iter().map(|(name, value)| (*name, *value));
    let own = pod.spec.security_context.sysctls.iter();
    let own = own.map(|sysctl| (sysctl.name.as_str(), sysctl.value.as_str()));
    // What the pod wants comes later, and so stays.
    defaults.chain(own).map(|(name, value)| (name.replace('.', "/"), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(security: Value) -> Pod {
        let text = json!({"spec": {"securityContext": security}});
        serde_json::from_value(text).expect("a pod")
    }

    fn container(security: Value) -> Container {
        let text = json!({"name": "a", "securityContext": security});
        serde_json::from_value(text).expect("a container")
    }

    fn judged(shared: Value, own: Value) -> Rights {
        rights(&pod(shared), &container(own), u64::MAX, None).expect("rights")
    }

    #[test]
    fn rights_are_the_least_that_the_container_asks_for() {
        let plain = judged(json!({}), json!({}));
        assert_eq!(plain.capabilities, capability::DEFAULT);
        assert!(!plain.system_calls.is_empty(), "the default profile");
        assert!(!plain.privileged && !plain.whole_proc && !plain.no_new_privileges);
        let closed = judged(json!({}), json!({"allowPrivilegeEscalation": false}));
        assert!(closed.no_new_privileges);
        assert!(judged(json!({}), json!({"procMount": "Unmasked"})).whole_proc);
        let all = judged(json!({}), json!({"privileged": true}));
        assert!(all.privileged && all.capabilities == u64::MAX && all.system_calls.is_empty());
    }

    #[test]
    fn the_containers_own_profile_comes_before_the_pods() {
        let profile = |kind: &str| json!({"seccompProfile": {"type": kind}});
        let filtered = |shared, own| !judged(shared, own).system_calls.is_empty();
        assert!(!filtered(profile("Unconfined"), json!({})));
        assert!(filtered(profile("Unconfined"), profile("RuntimeDefault")));
        assert!(!filtered(profile("RuntimeDefault"), profile("Unconfined")));
        let none = rights(&pod(profile("Elsewhere")), &container(json!({})), 0, None);
        let Err(RightsError::Config(message)) = none else { panic!("{none:?}") };
        assert!(message.contains("\"Elsewhere\""), "{message}");
    }

    #[test]
    fn the_administrators_profile_is_used_where_it_is_named() {
        let named = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"}});
        let (shared, own) = (pod(named), container(json!({})));
        assert_eq!(localhost_profile(&shared, &own), Some("a.json"));
        let privileged = container(json!({"privileged": true}));
        assert_eq!(localhost_profile(&shared, &privileged), None);
        let other = container(json!({"seccompProfile": {"type": "RuntimeDefault"}}));
        assert_eq!(localhost_profile(&shared, &other), None);
        let document = |text: Value| serde_json::from_value::<Document>(text).expect("a profile");
        let free = document(json!({"defaultAction": "SCMP_ACT_ALLOW"}));
        let filter = rights(&shared, &own, 0, Some(&free)).expect("rights").system_calls;
        assert_eq!(filter.len(), 5, "the architecture, and the verdict on all");
        let wrong = rights(&shared, &own, 0, Some(&document(json!({}))));
        assert!(matches!(wrong, Err(RightsError::Profile(_))), "{wrong:?}");
    }

    #[test]
    fn root_is_refused_where_the_pod_forbids_it() {
        let pod = Pod::default();
        let check = |security: Value, user: &str| {
            check_user(&pod, &container(security), &Chosen::for_test(user))
                .err()
                .unwrap_or_default()
        };
        let non_root = || json!({"runAsNonRoot": true});
        assert!(check(non_root(), "").contains("image will run as root"));
        assert!(check(non_root(), "0:5").contains("image will run as root"));
        assert!(check(non_root(), "web").contains("non-numeric user (web)"));
        assert!(check(json!({"runAsNonRoot": true, "runAsUser": 0}), "7").contains("runAsUser"));
        assert_eq!(check(non_root(), "7"), "");
        assert_eq!(check(json!({"runAsNonRoot": true, "runAsUser": 7}), "web"), "");
        assert_eq!(check(json!({}), ""), "");
    }

    #[test]
    fn only_kernel_parameters_of_the_pods_own_are_set() {
        let one = |name: &str| pod(json!({"sysctls": [{"name": name, "value": "1"}]}));
        assert_eq!(check_sysctls(&one("net.ipv4.tcp_syncookies")), Ok(()));
        assert_eq!(check_sysctls(&one("net/ipv4/tcp_syncookies")), Ok(()));
        let refused = check_sysctls(&one("kernel.msgmax"));
        assert_eq!(refused, Err("forbidden sysctl: \"kernel.msgmax\" not allowlisted".to_owned()));
        assert!(check_sysctls(&one("../../etc/passwd")).is_err());
        let mut of_the_node = one("net.ipv4.tcp_syncookies");
        of_the_node.spec.host_network = true;
        let error = check_sysctls(&of_the_node).expect_err("it would be the node's");
        assert!(error.contains("not allowed with host net enabled"), "{error}");
        let ports = "net/ipv4/ip_unprivileged_port_start".to_owned();
        let set = sysctls(&one("net.ipv4.ip_unprivileged_port_start"));
        assert_eq!(set.first(), Some(&(ports.clone(), "0".to_owned())));
        assert_eq!(set.last(), Some(&(ports, "1".to_owned())));
        of_the_node.spec.security_context.sysctls.clear();
        assert_eq!(sysctls(&of_the_node), []);
    }
}
