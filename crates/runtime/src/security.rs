//! What a pod's and a container's `securityContext` come to. Pure.

use crate::capability;
use crate::images::Chosen;
use crate::pod::{Container, Pod, SeccompProfile, SecurityContext};
use crate::system_calls::runtime_default;

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

/// What a container may do, on a node whose own root has the capabilities `available`.
///
/// # Errors
/// For people: what this node cannot give.
pub fn rights(pod: &Pod, container: &Container, available: u64) -> Result<Rights, String> {
    let own = &container.security_context;
    if own.privileged.unwrap_or(false) {
        let rights = Rights { capabilities: available, privileged: true, ..Rights::default() };
        return Ok(rights);
    }
    let capabilities = capability::chosen(&own.capabilities, available)?;
    Ok(Rights {
        capabilities,
        privileged: false,
        whole_proc: own.proc_mount == "Unmasked",
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        system_calls: filter(&pod.spec.security_context, own, capabilities)?,
    })
}

/// A container that says nothing has the default profile, as with kubelet's `seccompDefault`.
fn filter(shared: &SecurityContext, own: &SecurityContext, mask: u64) -> Result<Vec<u64>, String> {
    let profile = own.seccomp_profile.as_ref().or(shared.seccomp_profile.as_ref());
    match profile.map_or("RuntimeDefault", |profile: &SeccompProfile| profile.kind.as_str()) {
        "Unconfined" => Ok(Vec::new()),
        "RuntimeDefault" => Ok(runtime_default(mask).instructions()),
        other => Err(format!(
            "seccomp profiles of type {other:?} are not served by this node: use RuntimeDefault or \
             Unconfined"
        )),
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
        rights(&pod(shared), &container(own), u64::MAX).expect("rights")
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
        let error = rights(&pod(profile("Localhost")), &container(json!({})), 0);
        assert!(error.expect_err("refused").contains("Localhost"));
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
