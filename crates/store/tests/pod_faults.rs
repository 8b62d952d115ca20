//! What is wrong with a pod or a pod template, in the words of the real server
//! (`pkg/apis/core/validation`).

mod common;

use common::Api;
use serde_json::{Value, json};
use store::Status;

/// The refusal of a pod with this spec, which has one container where it names none.
fn refusal(spec: &Value) -> Result<(), Status> {
    let mut spec = spec.clone();
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c", "image": "i:1"}]);
    }
    let body = json!({"metadata": {"name": "p"}, "spec": spec});
    Api::new().create("pods", "default", body).map(|_| ())
}

/// Each spec is refused for one reason.
fn all_refused(cases: &[(Value, &str)]) {
    for (spec, message) in cases {
        let status = refusal(spec).expect_err(message);
        assert_eq!(status.message, format!("Pod \"p\" is invalid: {message}"));
    }
}

/// A spec whose one container has this besides its name and image.
fn container(with: Value) -> Value {
    let mut container = json!({"name": "c", "image": "i:1"});
    for (name, value) in with.as_object().into_iter().flatten() {
        container[name] = value.clone();
    }
    json!({"containers": [container]})
}

fn volume(source: Value) -> Value {
    let mut volume = json!({"name": "v"});
    for (name, value) in source.as_object().into_iter().flatten() {
        volume[name] = value.clone();
    }
    json!({"volumes": [volume]})
}

#[test]
fn what_containers_ask_for_is_within_their_limits() {
    let asking = |requests: Value, limits: Value| {
        container(json!({"resources": {"requests": requests, "limits": limits}}))
    };
    let at = "spec.containers[0].resources";
    all_refused(&[
        (
            asking(json!({"cpu": "2"}), json!({"cpu": "1500m"})),
            &format!(
                "{at}.requests: Invalid value: \"2\": must be less than or equal to cpu limit of \
                 1500m"
            ),
        ),
        (
            asking(json!({"memory": "1Gi"}), json!({"memory": "512Mi"})),
            &format!(
                "{at}.requests: Invalid value: \"1Gi\": must be less than or equal to memory limit \
                 of 512Mi"
            ),
        ),
        (
            asking(json!({"a.b/gpu": "1"}), json!({"a.b/gpu": "2"})),
            &format!("{at}.requests: Invalid value: \"1\": must be equal to a.b/gpu limit of 2"),
        ),
        (
            asking(json!({"a.b/gpu": "1"}), json!({})),
            &format!(
                "{at}.limits: Required value: Limit must be set for non overcommitable resources"
            ),
        ),
        (
            asking(json!({"cpu": "-1"}), json!({})),
            &format!(
                "{at}.requests[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"
            ),
        ),
        (
            asking(json!({}), json!({"a.b/gpu": "500m"})),
            // The limit is what is asked for as well.
            &format!(
                "[{at}.limits[a.b/gpu]: Invalid value: \"500m\": must be an integer, \
                 {at}.requests[a.b/gpu]: Invalid value: \"500m\": must be an integer]"
            ),
        ),
    ]);
    let fine = asking(
        json!({"cpu": "1", "memory": "64Mi", "ephemeral-storage": "1Gi", "a.b/gpu": 1}),
        json!({"cpu": "1000m", "memory": "1Gi", "a.b/gpu": "1"}),
    );
    refusal(&fine).expect("taken");
}

#[test]
fn probes_hooks_and_roles_of_containers() {
    let probe = |kind: &str, more: Value| {
        let mut probe = json!({"tcpSocket": {"port": 80}});
        for (name, value) in more.as_object().into_iter().flatten() {
            probe[name] = value.clone();
        }
        container(json!({kind: probe}))
    };
    let init = |with: Value| {
        let list = container(with)["containers"].clone();
        json!({"initContainers": list, "containers": [{"name": "m", "image": "i:1"}]})
    };
    let exec = json!({"exec": {"command": ["true"]}});
    all_refused(&[
        (
            probe("livenessProbe", json!({"successThreshold": 2})),
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            probe("readinessProbe", json!({"periodSeconds": -1})),
            "spec.containers[0].readinessProbe.periodSeconds: Invalid value: -1: must be greater \
             than or equal to 0",
        ),
        (
            probe("readinessProbe", json!({"terminationGracePeriodSeconds": 1})),
            "spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 1: \
             must not be set for readinessProbes",
        ),
        (
            container(json!({"startupProbe": {"exec": {}}})),
            "spec.containers[0].startupProbe.exec.command: Required value",
        ),
        (
            container(json!({"livenessProbe": {"httpGet": {"port": 1, "scheme": "FTP"}}})),
            "spec.containers[0].livenessProbe.httpGet.scheme: Unsupported value: \"FTP\": \
             supported values: \"HTTP\", \"HTTPS\"",
        ),
        (
            container(json!({"lifecycle": {"preStop": {}}})),
            "spec.containers[0].lifecycle.preStop: Required value: must specify a handler type",
        ),
        (
            container(json!({"restartPolicy": "Always"})),
            "spec.containers[0].restartPolicy: Forbidden: may not be set for non-init containers",
        ),
        (
            init(json!({"restartPolicy": "Never"})),
            "spec.initContainers[0].restartPolicy: Unsupported value: \"Never\": supported values: \
             \"Always\"",
        ),
        (
            init(json!({"readinessProbe": exec})),
            "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers \
             without restartPolicy=Always",
        ),
        (
            container(json!({"terminationMessagePolicy": "Log"})),
            "spec.containers[0].terminationMessagePolicy: Unsupported value: \"Log\": supported \
             values: \"FallbackToLogsOnError\", \"File\"",
        ),
    ]);
    let sidecar = json!({"restartPolicy": "Always", "readinessProbe": exec,
        "lifecycle": {"postStart": {"sleep": {"seconds": 1}}}});
    refusal(&init(sidecar)).expect("taken");
    let slow = json!({"successThreshold": 3, "initialDelaySeconds": 0});
    refusal(&probe("readinessProbe", slow)).expect("taken");
}

#[test]
fn variables_and_mounts() {
    let variable = |from: Value| container(json!({"env": [{"name": "A", "valueFrom": from}]}));
    let mount = |with: Value| {
        let mut mount = json!({"name": "v", "mountPath": "/v"});
        for (name, value) in with.as_object().into_iter().flatten() {
            mount[name] = value.clone();
        }
        let mut spec = container(json!({"volumeMounts": [mount]}));
        spec["volumes"] = json!([{"name": "v"}]);
        spec
    };
    let at = "spec.containers[0].env[0].valueFrom";
    all_refused(&[
        (
            variable(json!({})),
            &format!(
                "{at}: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, \
                 `configMapKeyRef` or `secretKeyRef`"
            ),
        ),
        (
            variable(json!({"configMapKeyRef": {"name": "c", "key": "k"},
                "secretKeyRef": {"name": "s", "key": "k"}})),
            &format!(
                "{at}: Invalid value: \"\": may not have more than one field specified at a time"
            ),
        ),
        (
            variable(json!({"fieldRef": {"fieldPath": "spec.foo"}})),
            &format!(
                "{at}.fieldRef.fieldPath: Invalid value: \"spec.foo\": error converting fieldPath: \
                 field label not supported: spec.foo"
            ),
        ),
        (
            mount(json!({"subPath": "../x"})),
            "spec.containers[0].volumeMounts[0].subPath: Invalid value: \"../x\": must not contain \
             '..'",
        ),
        (
            mount(json!({"subPath": "/x"})),
            "spec.containers[0].volumeMounts[0].subPath: Invalid value: \"/x\": must be a relative \
             path",
        ),
        (
            mount(json!({"subPath": "x", "subPathExpr": "$(A)"})),
            "spec.containers[0].volumeMounts[0].subPathExpr: Invalid value: \"$(A)\": subPathExpr \
             and subPath are mutually exclusive",
        ),
    ]);
    for path in ["metadata.labels['a.b/c']", "metadata.annotations['x']", "status.podIPs"] {
        refusal(&variable(json!({"fieldRef": {"fieldPath": path}}))).expect(path);
    }
    refusal(&mount(json!({"subPathExpr": "$(A)/..b"}))).expect("taken");
}

#[test]
fn volumes_have_one_source_that_is_whole() {
    all_refused(&[
        (
            volume(json!({"configMap": {"name": "c"}, "emptyDir": {}})),
            "spec.volumes[0].emptyDir: Forbidden: may not specify more than 1 volume type",
        ),
        (volume(json!({"configMap": {}})), "spec.volumes[0].configMap.name: Required value"),
        (volume(json!({"secret": {}})), "spec.volumes[0].secret.secretName: Required value"),
        (
            volume(json!({"secret": {"secretName": "s", "defaultMode": 1000}})),
            "spec.volumes[0].secret.defaultMode: Invalid value: 1000: must be a number between 0 \
             and 0777 (octal), both inclusive",
        ),
        (
            volume(json!({"configMap": {"name": "c", "items": [{"key": "k", "path": "/k"}]}})),
            "spec.volumes[0].configMap.items[0].path: Invalid value: \"/k\": must be a relative \
             path",
        ),
        (
            volume(json!({"hostPath": {"path": "/a/../b"}})),
            "spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
        ),
        (
            volume(json!({"projected": {"sources": [
                {"serviceAccountToken": {"path": "t", "expirationSeconds": 60}}]}})),
            "spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid \
             value: 60: may not specify a duration less than 10 minutes",
        ),
    ]);
    for source in [
        json!({}),
        json!({"emptyDir": {"sizeLimit": "1Gi"}}),
        json!({"hostPath": {"path": "/a", "type": "DirectoryOrCreate"}}),
        json!({"secret": {"secretName": "s", "optional": true, "defaultMode": 256}}),
        json!({"nfs": {"server": "s", "path": "/"}}),
    ] {
        refusal(&volume(source)).expect("taken");
    }
}

#[test]
fn places_names_and_times_of_pods() {
    let node = |expression: Value| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}}})
    };
    let spread = |constraint: Value| json!({"topologySpreadConstraints": [constraint]});
    let at = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.\
              nodeSelectorTerms";
    let preferred = json!({"weight": 0, "podAffinityTerm": {"topologyKey": "zone"}});
    all_refused(&[
        (
            node(json!({"key": "k", "operator": "In"})),
            &format!(
                "{at}[0].matchExpressions[0].values: Required value: must be specified when \
                 `operator` is 'In' or 'NotIn'"
            ),
        ),
        (
            node(json!({"key": "k", "operator": "Is"})),
            &format!(
                "{at}[0].matchExpressions[0].operator: Invalid value: \"Is\": not a valid selector \
                 operator"
            ),
        ),
        (
            json!({"affinity": {"podAntiAffinity":
                {"preferredDuringSchedulingIgnoredDuringExecution": [preferred]}}}),
            "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0]\
             .weight: Invalid value: 0: must be in the range 1-100",
        ),
        (
            json!({"affinity": {"podAffinity":
                {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}}}),
            "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]\
             .topologyKey: Required value: can not be empty",
        ),
        (
            spread(json!({"maxSkew": 0, "topologyKey": "zone",
                "whenUnsatisfiable": "DoNotSchedule"})),
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
        ),
        (
            spread(json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "Never"})),
            "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"Never\": \
             supported values: \"DoNotSchedule\", \"ScheduleAnyway\"",
        ),
        (
            json!({"activeDeadlineSeconds": 0}),
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, \
             inclusive",
        ),
        (
            json!({"dnsPolicy": "None"}),
            "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
        ),
        (
            json!({"dnsPolicy": "None", "dnsConfig": {"searches": ["a"]}}),
            "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver \
             when `dnsPolicy` is None",
        ),
        (
            json!({"dnsConfig": {"nameservers": ["ns1"]}}),
            "spec.dnsConfig.nameservers[0]: Invalid value: \"ns1\": must be a valid IP address, \
             (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            json!({"hostAliases": [{"ip": "10.0.0.300"}]}),
            "spec.hostAliases[0].ip: Invalid value: \"10.0.0.300\": must be a valid IP address, \
             (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            json!({"tolerations": [{"key": "k", "operator": "Exists", "effect": "NoSchedule",
                "tolerationSeconds": 5}]}),
            "spec.tolerations[0].effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute' \
             when `tolerationSeconds` is set",
        ),
    ]);
    refusal(&node(json!({"key": "k", "operator": "Gt", "values": ["1"]}))).expect("taken");
}

#[test]
fn no_pod_runs_otherwise_than_its_runtime_class_says() {
    let status = refusal(&json!({"runtimeClassName": "gvisor"})).expect_err("refused");
    assert_eq!(
        (status.code, status.message.as_str()),
        (403, "pods \"p\" is forbidden: pod rejected: RuntimeClass \"gvisor\" not found")
    );
}

#[test]
fn a_replication_controller_has_the_labels_of_its_template() {
    let body = |labels: Value| {
        json!({"metadata": {"name": "rc", "labels": labels}, "spec": {"template": {
            "metadata": {"labels": {"app": "web"}}, "spec": container(json!({}))}}})
    };
    for (labels, wanted) in
        [(json!({}), json!({"app": "web"})), (json!({"a": "b"}), json!({"a": "b"}))]
    {
        let mut api = Api::new();
        let made = api.create("replicationcontrollers", "default", body(labels)).expect("created");
        assert_eq!(made.value["metadata"]["labels"], wanted);
        assert_eq!(made.value["spec"]["selector"], json!({"app": "web"}));
    }
}

#[test]
fn templates_are_checked_like_pods() {
    let template = container(json!({"resources": {"requests": {"cpu": 2}, "limits": {"cpu": 1}}}));
    let body = json!({"metadata": {"name": "web"}, "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": template}}});
    assert_eq!(
        Api::new().create("deployments", "default", body).expect_err("refused").message,
        "Deployment.apps \"web\" is invalid: \
         spec.template.spec.containers[0].resources.requests: Invalid value: \"2\": must be less \
         than or equal to cpu limit of 1"
    );
}
