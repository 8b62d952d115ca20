//! LimitRanges: what they give new pods, what they forbid, and which are refused.

mod common;

use common::{Api, named, row};
use serde_json::{Value, json};
use store::Status;

fn limited(limits: Value) -> Api {
    let mut api = Api::new();
    range(&mut api, "one", limits).expect("created");
    api
}

fn range(api: &mut Api, name: &str, limits: Value) -> Result<Value, Status> {
    let body = json!({"metadata": {"name": name}, "spec": {"limits": limits}});
    api.create("limitranges", "default", body).map(|object| object.value.clone())
}

/// Creates a pod whose one container has these resources.
fn pod(api: &mut Api, resources: Value) -> Result<Value, Status> {
    let mut body = named(row("pods"), "p");
    body["spec"]["containers"][0]["resources"] = resources;
    api.create("pods", "default", body).map(|object| object.value.clone())
}

fn resources(pod: &Value) -> &Value {
    &pod["spec"]["containers"][0]["resources"]
}

#[test]
fn a_container_gets_what_it_does_not_ask_for_itself() {
    let given = json!([{"type": "Container", "default": {"cpu": "500m", "memory": "128Mi"},
        "defaultRequest": {"cpu": "100m"}}]);
    let made = pod(&mut limited(given.clone()), json!({})).expect("created");
    let wanted = json!({
        "requests": {"cpu": "100m", "memory": "128Mi"},
        "limits": {"cpu": "500m", "memory": "128Mi"},
    });
    assert_eq!(*resources(&made), wanted);
    let annotation = &made["metadata"]["annotations"]["kubernetes.io/limit-ranger"];
    let text = "LimitRanger plugin set: cpu, memory request for container web; cpu, memory limit \
                for container web";
    assert_eq!(annotation, text);
    assert_eq!(made["status"]["qosClass"], "Burstable");
    let own = json!({"limits": {"cpu": "2", "memory": "1Gi"}});
    let made = pod(&mut limited(given), own).expect("created");
    let wanted = json!({
        "requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"},
    });
    assert_eq!(*resources(&made), wanted);
    assert_eq!(made["metadata"]["annotations"], Value::Null);
}

#[test]
fn a_range_fills_in_what_follows_from_its_limits() {
    let mut api = Api::new();
    let limits = json!([{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "64Mi"}},
        {"type": "Pod", "max": {"cpu": "4"}}]);
    let made = range(&mut api, "one", limits).expect("created")["spec"]["limits"].take();
    assert_eq!(made[0]["default"], json!({"cpu": "2"}));
    assert_eq!(made[0]["defaultRequest"], json!({"cpu": "2", "memory": "64Mi"}));
    assert_eq!(made[1], json!({"type": "Pod", "max": {"cpu": "4"}}));
}

#[test]
fn a_pod_keeps_to_the_limits_in_the_words_of_the_api() {
    let container = |extra: Value| {
        let mut limit = json!({"type": "Container"});
        for (field, value) in extra.as_object().into_iter().flatten() {
            limit[field] = value.clone();
        }
        json!([limit])
    };
    let of_pod = |side: &str, amount: &str| json!([{"type": "Pod", side: {"cpu": amount}}]);
    let both = |request: &str, limit: &str| json!({"requests": {"cpu": request}, "limits": {"cpu": limit}});
    for (limits, resources, wanted) in [
        (
            container(json!({"max": {"cpu": "1"}})),
            both("500m", "2"),
            "maximum cpu usage per Container is 1, but limit is 2",
        ),
        (
            container(json!({"min": {"cpu": "200m"}})),
            both("100m", "1"),
            "minimum cpu usage per Container is 200m, but request is 100m",
        ),
        (
            container(json!({"min": {"cpu": "1"}, "max": {"cpu": "2"}})),
            both("500m", "4000m"),
            "[minimum cpu usage per Container is 1, but request is 500m, maximum cpu usage per \
             Container is 2, but limit is 4]",
        ),
        (
            container(json!({"maxLimitRequestRatio": {"cpu": "2"}})),
            both("300m", "1"),
            "cpu max limit to request ratio per Container is 2, but provided ratio is 3.333333",
        ),
        (
            container(json!({"maxLimitRequestRatio": {"cpu": "2"}})),
            json!({}),
            "cpu max limit to request ratio per Container is 2, but no request is specified or \
             request is 0",
        ),
        (of_pod("max", "1"), json!({}), "maximum cpu usage per Pod is 1.  No limit is specified"),
        (of_pod("min", "1"), json!({}), "minimum cpu usage per Pod is 1.  No request is specified"),
        (
            of_pod("max", "1"),
            both("1", "1500m"),
            "maximum cpu usage per Pod is 1, but limit is 1500m",
        ),
    ] {
        let refused = pod(&mut limited(limits), resources).expect_err("refused");
        assert_eq!(refused.code, 403);
        assert_eq!(refused.message, format!("pods \"p\" is forbidden: {wanted}"));
    }
    for (limits, resources) in [
        (container(json!({"max": {"cpu": "1"}})), json!({})),
        (container(json!({"max": {"cpu": "1"}, "min": {"cpu": "1"}})), both("1000m", "1")),
        (container(json!({"maxLimitRequestRatio": {"cpu": "2"}})), both("500m", "1")),
        (of_pod("max", "1"), both("1", "1")),
        (json!([{"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}]), json!({})),
    ] {
        pod(&mut limited(limits), resources).expect("created");
    }
}

#[test]
fn a_pod_is_as_large_as_all_that_runs_at_a_time() {
    let limits = json!([{"type": "Pod", "max": {"cpu": "1"}}]);
    let make = |init: Value, main: &str| {
        let container = |name: String, (cpu, policy): (&str, &str)| {
            let mut one =
                json!({"name": name, "image": "i", "resources": {"limits": {"cpu": cpu}}});
            if !policy.is_empty() {
                one["restartPolicy"] = json!(policy);
            }
            one
        };
        let init: Vec<Value> = init
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
            .map(|(index, one)| {
                let text = |place: usize| one[place].as_str().unwrap_or_default();
                container(format!("i{index}"), (text(0), text(1)))
            })
            .collect();
        let mut body = named(row("pods"), "p");
        body["spec"]["initContainers"] = json!(init);
        body["spec"]["containers"] = json!([container("c".into(), (main, ""))]);
        limited(limits.clone()).create("pods", "default", body).map(drop)
    };
    make(json!([["900m", ""], ["800m", ""]]), "1").expect("one after the other");
    make(json!([["1100m", ""]]), "100m").expect_err("an init container alone");
    make(json!([["400m", "Always"], ["500m", ""]]), "600m").expect("beside each other");
    make(json!([["400m", "Always"], ["700m", ""]]), "100m").expect_err("both at a time");
    make(json!([["400m", "Always"]]), "700m").expect_err("both at a time");
}

#[test]
fn other_namespaces_and_older_pods_are_left_alone() {
    let mut api = Api::new();
    pod(&mut api, json!({})).expect("created before");
    api.create("namespaces", "", json!({"metadata": {"name": "other"}})).expect("created");
    range(
        &mut api,
        "one",
        json!([{"type": "Container", "min": {"cpu": "1"}, "max": {"cpu": "1"}}]),
    )
    .expect("created");
    let body = json!({"metadata": {"labels": {"a": "b"}}});
    let kind = store::PatchKind::Merge;
    api.patch("pods", "default", "p", kind, body).expect("an update is not asked");
    let free = api.create("pods", "other", named(row("pods"), "p")).expect("created").value.clone();
    assert_eq!(*resources(&free), json!({}));
}

#[test]
fn ranges_that_nothing_could_keep_to_are_refused() {
    let refused =
        |limits: Value| range(&mut Api::new(), "one", limits).expect_err("refused").message;
    for (limit, wanted) in [
        (
            json!({"type": "Pod", "min": {"cpu": "2"}, "max": {"cpu": "1"}}),
            "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
        ),
        (
            json!({"type": "Pod", "default": {"cpu": "1"}}),
            "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
        ),
        (
            json!({"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "2"}}),
            "spec.limits[0].defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is \
             greater than default limit value 1",
        ),
        (
            json!({"type": "Pod", "maxLimitRequestRatio": {"cpu": "500m"}}),
            "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less \
             than 1",
        ),
        (
            json!({"type": "Pod", "min": {"cpu": "1"}, "max": {"cpu": "2"},
                "maxLimitRequestRatio": {"cpu": "3"}}),
            "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"3\": ratio 3 is greater \
             than max/min = 2.000000",
        ),
        (
            json!({"type": "Pod", "max": {"cpu": "-1"}}),
            "spec.limits[0].max[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
        ),
    ] {
        let message = refused(json!([limit]));
        assert_eq!(message, format!("LimitRange \"one\" is invalid: {wanted}"));
    }
    let twice = json!([{"type": "Pod"}, {"type": "Pod"}]);
    assert!(refused(twice).ends_with("spec.limits[1].type: Duplicate value: \"Pod\""));
}
