//! The protocol of the CNI specification, line by line of the checklist, with the built program.

mod lab;

use std::ffi::CString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{LabNode, PATIENCE, Pod, call_plugin, udp_echo};
use netlink::VethSpec;
use serde_json::{Value, json};

fn node() -> LabNode {
    LabNode::alone("node1", Ipv4Addr::new(172, 30, 0, 2).into())
}

fn config(node: &LabNode) -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "flatnet",
        "type": "flatnet",
        "dataDir": node.scratch.0.join("records"),
        "ipam": {
            "type": "host-local",
            "dataDir": node.scratch.0,
            "subnet": "10.244.1.0/24",
            "routes": [{ "dst": "0.0.0.0/0" }],
        },
    })
}

fn with(config: &Value, key: &str, value: Value) -> Value {
    let mut config = config.clone();
    config[key] = value;
    config
}

fn gc(node: &LabNode, config: &Value, living: &Value) -> Result<Value, Value> {
    let environment = [("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")];
    let config = with(config, "cni.dev/valid-attachments", living.clone());
    call_plugin(&node.namespace, &environment, &config)
}

fn status(node: &LabNode, config: &Value) -> Result<Value, Value> {
    call_plugin(&node.namespace, &[("CNI_COMMAND", "STATUS")], config)
}

/// What is left of pods on the node: node ends, reservations, records.
fn left(node: &LabNode) -> (Vec<String>, Vec<String>, Vec<String>) {
    let links = node.netlink().links().expect("links");
    let ends = links.into_iter().filter(|link| link.kind == "veth").map(|link| link.name);
    (ends.collect(), node.reserved(), records(node))
}

fn records(node: &LabNode) -> Vec<String> {
    let directory = fs::read_dir(node.scratch.0.join("records/flatnet"));
    let names = directory.into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    names.filter(|name| name.ends_with(".json")).collect()
}

fn nothing() -> (Vec<String>, Vec<String>, Vec<String>) {
    (vec![], vec![], vec![])
}

/// Runs a program in the node's namespace.
fn run_in(node: &LabNode, program: &str, arguments: &[&str]) -> String {
    let run = || Command::new(program).args(arguments).output().expect(program);
    let output = node.namespace.run(run).expect("the node's namespace");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {words}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One call with exactly this environment and these bytes: exit code, and all of standard output.
fn raw(environment: &[(&str, &str)], input: &[u8]) -> (i32, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_flatnet-cni"))
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the plugin starts");
    let mut stdin = child.stdin.take().expect("its input");
    // It may refuse the environment before it reads.
    let _ = std::io::Write::write_all(&mut stdin, input);
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let code = output.status.code().expect("an exit code");
    (code, String::from_utf8(output.stdout).expect("text"))
}

type Environment<'a> = Vec<(&'a str, &'a str)>;
/// Line of the checklist, environment, input, and what is expected: code and a part of the message.
type Refusal<'a> = (&'a str, Environment<'a>, &'a [u8], u64, &'a str);

/// CNI-01 to CNI-07: wrong environments and inputs are refused with the specification's codes,
/// in one error document that names what is wrong.
#[test]
fn wrong_environments_and_inputs_have_their_codes() {
    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/none"),
    ];
    fn changed<'a>(key: &'a str, value: &'a str) -> Environment<'a> {
        let kept = ADD.iter().copied().filter(|(name, _)| *name != key);
        let new = Some((key, value)).filter(|(_, value)| !value.is_empty());
        kept.chain(new).collect()
    }
    let good = br#"{"cniVersion":"1.1.0","name":"net","type":"flatnet"}"#;
    let args = "COLOR=red";
    let mut unnamed = changed("CNI_IFNAME", "");
    unnamed.push(("CNI_IFNAME", ""));
    let rows: [Refusal<'_>; 24] = [
        ("CNI-01", changed("CNI_COMMAND", ""), good, 4, "CNI_COMMAND"),
        ("CNI-01", changed("CNI_COMMAND", "MAKE"), good, 4, "CNI_COMMAND"),
        ("CNI-02", changed("CNI_CONTAINERID", ""), good, 4, "CNI_CONTAINERID"),
        ("CNI-02", changed("CNI_IFNAME", ""), good, 4, "CNI_IFNAME"),
        ("CNI-02", changed("CNI_NETNS", ""), good, 4, "CNI_NETNS"),
        ("CNI-02", vec![("CNI_COMMAND", "GC")], good, 4, "CNI_PATH"),
        ("CNI-03", changed("CNI_CONTAINERID", "../c1"), good, 4, "CNI_CONTAINERID"),
        ("CNI-03", ADD.into(), br#"{"name":"/net"}"#, 7, "network name"),
        ("CNI-04", changed("CNI_IFNAME", "sixteen-letters-"), good, 4, "CNI_IFNAME"),
        ("CNI-04", unnamed, good, 4, "CNI_IFNAME"),
        ("CNI-04", changed("CNI_IFNAME", "."), good, 4, "CNI_IFNAME"),
        ("CNI-04", changed("CNI_IFNAME", ".."), good, 4, "CNI_IFNAME"),
        ("CNI-04", changed("CNI_IFNAME", "a/b"), good, 4, "CNI_IFNAME"),
        ("CNI-04", changed("CNI_IFNAME", "a:b"), good, 4, "CNI_IFNAME"),
        ("CNI-04", changed("CNI_IFNAME", "a b"), good, 4, "CNI_IFNAME"),
        ("CNI-05", changed("CNI_ARGS", args), good, 4, "COLOR"),
        ("CNI-06", ADD.into(), b"", 5, "standard input"),
        ("CNI-06", ADD.into(), b"{", 6, "not JSON"),
        ("CNI-06", ADD.into(), br#"{"cniVersion":"9.9.9","name":"net"}"#, 1, "incompatible"),
        ("CNI-06", ADD.into(), br#"{"name":"net","mtu":7}"#, 7, "mtu: 7"),
        (
            "CNI-06",
            ADD.into(),
            br#"{"name":"net","conditionsV6":["-s"]}"#,
            2,
            r#"conditionsV6: ["-s"]"#,
        ),
        (
            "infinibandGUID",
            ADD.into(),
            br#"{"name":"net","runtimeConfig":{"infinibandGUID":"c2:11"}}"#,
            2,
            r#"infinibandGUID: "c2:11""#,
        ),
        ("spec 4.3", ADD.into(), good, 3, "/run/netns/none"),
        ("spec 4.3", changed("CNI_NETNS", "/proc/self/ns/net"), good, 4, "own network namespace"),
    ];
    for (line, environment, input, code, expected) in rows {
        let (exit, text) = raw(&environment, input);
        assert_ne!(exit, 0, "{line}");
        let error: Value = serde_json::from_str(&text)
            .unwrap_or_else(|_| panic!("{line}: one JSON document: {text:?}"));
        assert_eq!(error["code"], json!(code), "{line}: {error}");
        let message = error["msg"].as_str().expect("a message");
        assert!(message.contains(expected), "{line}: {message:?} should name {expected:?}");
        assert!(error["cniVersion"].is_string() && error["details"].is_string(), "CNI-07: {error}");
    }
}

/// CNI-02, CNI-05: no command needs more than it uses, and known arguments are no fault.
#[test]
fn commands_need_no_more_than_they_use() {
    let (exit, text) = raw(&[("CNI_COMMAND", "VERSION")], b"");
    let answer: Value = serde_json::from_str(&text).expect("a document");
    assert_eq!((exit, &answer["cniVersion"]), (0, &json!("1.1.0")));
    let node = node();
    let config = config(&node);
    assert_eq!(status(&node, &config), Ok(Value::Null));
    assert_eq!(gc(&node, &config, &json!([])), Ok(Value::Null));
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1;COLOR=red";
    let del = [
        ("CNI_COMMAND", "DEL"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", args),
    ];
    assert_eq!(call_plugin(&node.namespace, &del, &config), Ok(Value::Null));
}

/// Item 1 of the pod network: one exec instead of bridge, host-local, portmap, bandwidth,
/// firewall and tuning. CNI-11 for all keys at once, CNI-18 for the rules at the edge.
#[test]
fn one_configuration_does_what_six_plugins_did() {
    let node = node();
    let mut config = config(&node);
    for (key, value) in [
        ("ipMasq", json!(true)),
        ("firewall", json!({ "ingressPolicy": "same-bridge" })),
        ("sysctl", json!({ "net.ipv4.ip_unprivileged_port_start": "80" })),
        ("mtu", json!(1400)),
        ("txQLen", json!(500)),
        (
            "runtimeConfig",
            json!({
                "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
                "bandwidth": { "ingressRate": 8_000_000, "ingressBurst": 800_000 },
                "ips": ["10.244.1.77"],
                "mac": "0a:58:00:00:00:77",
            }),
        ),
    ] {
        config[key] = value;
    }
    let pod = Pod::new("c1");
    let result = pod.call("ADD", &node.namespace, &config).expect("ADD");
    assert_eq!(result["ips"][0]["address"], "10.244.1.77/24");
    assert_eq!(result["interfaces"][1]["mac"], "0a:58:00:00:00:77");
    let eth0 = pod.netlink().require_link("eth0").expect("the interface");
    assert_eq!((eth0.mtu, eth0.transmit_queue_length), (1400, 500));
    let record: Value = serde_json::from_slice(
        &fs::read(node.scratch.0.join("records/flatnet/c1-eth0.json")).expect("a record"),
    )
    .expect("JSON");
    assert_eq!(record["edge"]["hostPorts"][0]["hostPort"], 8080);
    assert_eq!(record["edge"]["firewall"]["ingressPolicy"], "same-bridge");
    assert_eq!(record["bandwidth"]["ingress"]["bitsPerSecond"], 8_000_000);
    assert_eq!(record["edge"]["masquerade"]["except"][0], "10.244.1.0/24");

    let check = with(&config, "prevResult", result);
    assert_eq!(pod.call("CHECK", &node.namespace, &check), Ok(Value::Null));
    let tables = run_in(&node, "nft", &["list", "tables"]);
    assert!(!tables.is_empty(), "rules at the edge");
    run_in(&node, "nft", &["flush", "ruleset"]);
    let error = pod.call("CHECK", &node.namespace, &check).expect_err("CNI-18: rules are gone");
    assert!(error["msg"].as_str().is_some_and(|text| text.contains("rules at the pod's edge")));

    assert_eq!(pod.call("DEL", &node.namespace, &config), Ok(Value::Null));
    assert_eq!(left(&node), nothing());
    let ifbs = node.netlink().links().expect("links").into_iter().filter(|it| it.kind == "ifb");
    assert_eq!(ifbs.count(), 0);
}

/// X-14: the next pod of an address inherits no tracked flow of the last one.
#[test]
fn del_forgets_the_flows_of_the_pods_address() {
    let node = node();
    let ports = json!({
        "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
    });
    // Any rule about a flow makes the kernel track.
    let (plain, config) = (config(&node), with(&config(&node), "runtimeConfig", ports));
    let pods = ["c1", "c2"].map(Pod::new);
    let configs = [&config, &plain];
    let addresses = [0, 1].map(|number: usize| {
        let result = pods[number].call("ADD", &node.namespace, configs[number]).expect("ADD");
        let text = result["ips"][0]["address"].as_str().unwrap_or_default().to_owned();
        text.split('/').next().and_then(|it| it.parse().ok()).expect("an address")
    });
    for (pod, address) in pods.iter().zip(addresses) {
        udp_echo(&node.namespace, &pod.namespace, address, 100);
    }
    let tracked = |address: IpAddr| {
        let read = || fs::read_to_string("/proc/thread-self/net/nf_conntrack");
        let flows = node.namespace.run(read).expect("the node").expect("the tracked flows");
        flows.lines().filter(|line| line.contains(&format!("={address} "))).count()
    };
    assert!(addresses.iter().all(|address| tracked(*address) > 0), "nothing to forget");
    pods[0].call("DEL", &node.namespace, &config).expect("DEL");
    assert_eq!((tracked(addresses[0]), tracked(addresses[1])), (0, 1));
}

/// Every way to connect a pod, with the rules at its edge: pods reach each other and their node.
#[test]
fn pods_of_every_datapath_reach_each_other_behind_their_rules() {
    for datapath in ["bridge", "routed", "macvlan"] {
        let node = node();
        run_in(&node, "ip", &["link", "set", "lo", "up"]);
        for address in ["172.30.0.2/32", "fd00:30::2/128"] {
            run_in(&node, "ip", &["address", "add", address, "dev", "lo"]);
        }
        let mut config = with(&config(&node), "datapath", json!(datapath));
        config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:1::/64" }]]);
        if datapath == "macvlan" {
            // The wire below, with nobody at the other end.
            node.netlink().create_veth(&VethSpec::new("wire0", "wire1")).expect("a wire");
            for end in ["wire0", "wire1"] {
                run_in(&node, "ip", &["link", "set", end, "up"]);
            }
            config["master"] = json!("wire0");
        }
        let pods = ["c1", "c2"].map(Pod::new);
        let mut addresses = Vec::new();
        for pod in &pods {
            let result = pod.call("ADD", &node.namespace, &config).expect(datapath);
            let own = result["ips"].as_array().expect("addresses").iter();
            let own = own.filter_map(|ip| ip["address"].as_str()?.split('/').next());
            addresses.push(own.map(|text| text.parse().expect("an address")).collect::<Vec<_>>());
            let check = with(&config, "prevResult", result.clone());
            assert_eq!(pod.call("CHECK", &node.namespace, &check), Ok(Value::Null), "{datapath}");
        }
        for (family, address) in addresses[1].iter().enumerate() {
            let seen = udp_echo(&pods[0].namespace, &pods[1].namespace, *address, 100);
            assert_eq!(seen, addresses[0][family], "{datapath}");
            if datapath != "macvlan" {
                udp_echo(&node.namespace, &pods[1].namespace, *address, 100);
            }
        }
        for pod in &pods {
            assert_eq!(pod.call("DEL", &node.namespace, &config), Ok(Value::Null), "{datapath}");
        }
        let (_, reserved, records) = left(&node);
        assert_eq!((reserved.len(), records.len()), (0, 0), "{datapath}");
        assert_eq!(pods[0].netlink().link("eth0").expect("an answer"), None, "{datapath}");
    }
}

/// BR: l2 mode, without addresses.
#[test]
fn without_ipam_a_pod_has_an_interface_and_no_addresses() {
    let node = node();
    let mut config = config(&node);
    config.as_object_mut().expect("an object").remove("ipam");
    let pod = Pod::new("c1");
    let result = pod.call("ADD", &node.namespace, &config).expect("ADD");
    assert_eq!(result["ips"], json!([]));
    assert!(pod.netlink().require_link("eth0").expect("the interface").up);
    let check = with(&config, "prevResult", result);
    assert_eq!(pod.call("CHECK", &node.namespace, &check), Ok(Value::Null));
    assert_eq!(pod.call("DEL", &node.namespace, &config), Ok(Value::Null));
    assert_eq!(left(&node), nothing());
}

/// CNI-15, CNI-16, CNI-17: DEL works from what is there: with a damaged record, without one, and
/// for a pod that was added before there were records.
#[test]
fn del_needs_no_record() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 3] = [
        ("gone", |file| fs::remove_file(file).expect("removed")),
        ("torn", |file| fs::write(file, "{\"containerID\":").expect("torn")),
        ("empty", |file| fs::write(file, "").expect("emptied")),
    ];
    for (how, damage) in damages {
        let node = node();
        let config = config(&node);
        let pod = Pod::new("c1");
        pod.call("ADD", &node.namespace, &config).expect("ADD");
        damage(&node.scratch.0.join("records/flatnet/c1-eth0.json"));
        assert_eq!(pod.call("DEL", &node.namespace, &config), Ok(Value::Null), "{how}");
        assert_eq!(left(&node), nothing(), "{how}");
    }
}

/// What an ADD left that was killed after its record is no obstacle, whatever it had made.
#[test]
fn an_add_after_a_killed_one_begins_anew() {
    let node = node();
    let config = config(&node);
    let killed = Pod::new("c1");
    killed.call("ADD", &node.namespace, &config).expect("ADD");
    // The namespace went with its pod, and the runtime tries again under the same name.
    drop(killed);
    let pod = Pod::new("c1");
    let result = pod.call("ADD", &node.namespace, &config).expect("ADD");
    let (ends, reserved, records) = left(&node);
    assert_eq!((ends.len(), reserved.len(), records.len()), (1, 1, 1));
    let address = result["ips"][0]["address"].as_str().expect("an address");
    assert_eq!(address, format!("{}/24", reserved[0]));
}

/// A delegate that writes down how it was called, and answers as its configuration says.
fn install_delegate(node: &LabNode) -> String {
    let path = node.scratch.0.join("plugins");
    fs::create_dir_all(&path).expect("a directory");
    let log = node.scratch.0.join("calls");
    let script = format!(
        "#!/bin/sh\ninput=$(cat)\necho \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS \
         $CNI_ARGS $input\" >> {log}\necho 'words of the delegate' >&2\n\
         case \"$CNI_COMMAND $input\" in\n\
         ADD*refuse*) echo '{{\"code\":11,\"msg\":\"no lease\",\"details\":\"try later\"}}'; exit 1;;\n\
         ADD*nonsense*) echo 'nonsense';;\n\
         ADD*old*) echo '{{\"ip4\":{{\"ip\":\"10.9.0.5/24\",\"gateway\":\"10.9.0.1\"}}}}';;\n\
         ADD*) echo '{{\"cniVersion\":\"1.1.0\",\"ips\":[{{\"address\":\"10.9.0.5/24\",\
         \"gateway\":\"10.9.0.1\"}}],\"routes\":[{{\"dst\":\"0.0.0.0/0\"}}],\
         \"dns\":{{\"nameservers\":[\"10.9.0.2\"]}}}}';;\n\
         GC*broken*) echo '{{\"code\":100,\"msg\":\"broken\"}}'; exit 1;;\n\
         STATUS*exhausted*) echo '{{\"code\":50,\"msg\":\"exhausted\"}}'; exit 1;;\n\
         esac\n",
        log = log.display()
    );
    let file = path.join("leases");
    fs::write(&file, script).expect("a script");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("executable");
    path.display().to_string()
}

fn delegated(node: &LabNode, behaviour: &str) -> Value {
    with(&config(node), "ipam", json!({ "type": "leases", "behaviour": behaviour }))
}

fn call_with_path(
    node: &LabNode,
    pod: &Pod,
    path: &str,
    command: &str,
    config: &Value,
) -> Result<Value, Value> {
    let namespace = pod.path();
    let environment = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", pod.id.as_str()),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", namespace.as_str()),
        ("CNI_PATH", path),
        ("CNI_ARGS", "IgnoreUnknown=1;COLOR=red"),
        ("PATH", "/usr/bin:/bin"),
    ];
    call_plugin(&node.namespace, &environment, config)
}

/// The commands that the delegate was called with.
fn calls(node: &LabNode) -> Vec<String> {
    let text = fs::read_to_string(node.scratch.0.join("calls")).unwrap_or_default();
    text.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
}

/// CNI-13, CNI-14: the delegate gets our environment and configuration, and its result becomes a
/// whole one. CHECK, STATUS, GC and DEL are forwarded.
#[test]
fn a_delegate_is_asked_as_we_were_and_its_result_completed() {
    for behaviour in ["well", "old"] {
        let node = node();
        let path = install_delegate(&node);
        let config = delegated(&node, behaviour);
        let pod = Pod::new("c1");
        let call =
            |command: &str, config: &Value| call_with_path(&node, &pod, &path, command, config);
        let result = call("ADD", &config).expect("ADD");
        let expected = json!([{ "interface": 1, "address": "10.9.0.5/24", "gateway": "10.9.0.1" }]);
        assert_eq!(result["ips"], expected);
        assert_eq!(result["interfaces"][1]["sandbox"], pod.path());
        if behaviour == "well" {
            assert_eq!(result["dns"]["nameservers"], json!(["10.9.0.2"]));
            assert_eq!(result["routes"][0]["dst"], "0.0.0.0/0");
        }
        let log = fs::read_to_string(node.scratch.0.join("calls")).expect("a log");
        let expected = format!("ADD c1 eth0 {} IgnoreUnknown=1;COLOR=red ", pod.path());
        let input = log.strip_prefix(&expected).expect("the same environment");
        assert_eq!(serde_json::from_str::<Value>(input.trim()).expect("JSON"), config);

        let check = with(&config, "prevResult", result);
        assert_eq!(call("CHECK", &check), Ok(Value::Null));
        assert_eq!(call("STATUS", &config), Ok(Value::Null));
        let living = json!([{ "containerID": "c1", "ifname": "eth0" }]);
        assert_eq!(
            call("GC", &with(&config, "cni.dev/valid-attachments", living)),
            Ok(Value::Null)
        );
        assert_eq!(call("DEL", &config), Ok(Value::Null));
        assert_eq!(calls(&node), ["ADD", "CHECK", "STATUS", "GC", "DEL"]);
        assert_eq!(left(&node), nothing());
    }
}

/// CNI-07, CNI-13: what a delegate says on standard error is on ours, and not in the document.
#[test]
fn words_of_a_delegate_go_to_standard_error() {
    let node = node();
    let path = install_delegate(&node);
    let run = || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_flatnet-cni"))
            .env_clear()
            .envs([("CNI_COMMAND", "STATUS"), ("CNI_PATH", &path), ("PATH", "/usr/bin:/bin")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the plugin starts");
        let mut stdin = child.stdin.take().expect("its input");
        let text = delegated(&node, "well").to_string();
        std::io::Write::write_all(&mut stdin, text.as_bytes()).expect("written");
        drop(stdin);
        child.wait_with_output().expect("it ends")
    };
    let output = node.namespace.run(run).expect("the node's namespace");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "words of the delegate\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "");
}

/// CNI-12: a delegate that fails is told DEL, its fault is ours, and nothing is left; so it is
/// when what comes after the delegate fails.
#[test]
fn a_delegate_that_fails_or_whose_addresses_fail_is_told_to_release() {
    let rows = [("refuse", 11, "no lease"), ("nonsense", 107, "leases failed")];
    for (behaviour, code, expected) in rows {
        let node = node();
        let path = install_delegate(&node);
        let pod = Pod::new("c1");
        let answer = call_with_path(&node, &pod, &path, "ADD", &delegated(&node, behaviour));
        let error = answer.expect_err("the delegate failed");
        assert_eq!(error["code"], code, "{error}");
        assert!(error["msg"].as_str().is_some_and(|text| text.contains(expected)), "{error}");
        assert_eq!(calls(&node), ["ADD", "DEL"]);
        assert_eq!(left(&node), nothing());
    }
    let node = node();
    let path = install_delegate(&node);
    node.netlink().create_veth(&VethSpec::new("cni0", "cni1")).expect("no bridge");
    let answer = call_with_path(&node, &Pod::new("c1"), &path, "ADD", &delegated(&node, "well"));
    answer.expect_err("the bridge is none");
    assert_eq!(calls(&node), ["ADD", "DEL"]);
    assert_eq!(records(&node), [] as [&str; 0]);
    let missing = call_with_path(&node, &Pod::new("c2"), "/nowhere", "ADD", &delegated(&node, ""));
    assert_eq!(missing.expect_err("no such program")["code"], 7);
}

/// CNI-20: STATUS says 50 when an ADD would not work, 51 when running pods are hurt too; ADD and
/// DEL work after it failed.
#[test]
fn status_tells_of_the_agent_the_pool_and_the_bridge() {
    let node = node();
    let socket = node.scratch.0.join("agent.sock");
    let with_agent = with(&config(&node), "agentSocket", json!(socket));
    let error = status(&node, &with_agent).expect_err("no agent");
    assert_eq!(error["code"], 50);
    assert!(error["details"].as_str().is_some_and(|text| text.contains("agent.sock")), "{error}");
    let pod = Pod::new("c1");
    pod.call("ADD", &node.namespace, &with_agent).expect("ADD without the agent");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("an agent");
    assert_eq!(status(&node, &with_agent), Ok(Value::Null));
    drop(listener);
    // A child of another test may have it for a moment, until it runs its own program.
    let deadline = Instant::now() + PATIENCE;
    while std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        assert!(Instant::now() < deadline, "somebody still listens");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(status(&node, &with_agent).expect_err("it died")["code"], 50);
    pod.call("DEL", &node.namespace, &with_agent).expect("DEL without the agent");

    let small = with(
        &config(&node),
        "ipam",
        json!({
            "type": "host-local", "dataDir": node.scratch.0, "subnet": "10.244.1.0/30",
        }),
    );
    assert_eq!(status(&node, &small), Ok(Value::Null));
    let pod = Pod::new("c2");
    pod.call("ADD", &node.namespace, &small).expect("the only address");
    assert_eq!(status(&node, &small).expect_err("exhausted")["code"], 50);
    let end = left(&node).0.remove(0);
    run_in(&node, "ip", &["link", "del", &end]);
    let error = status(&node, &small).expect_err("and the pod is cut off");
    assert_eq!(error["code"], 51);
    assert!(error["details"].as_str().is_some_and(|text| text.contains(&end)), "{error}");
    pod.call("DEL", &node.namespace, &small).expect("DEL");
    assert_eq!(status(&node, &small), Ok(Value::Null));

    let path = install_delegate(&node);
    let environment = [("CNI_COMMAND", "STATUS"), ("CNI_PATH", &path), ("PATH", "/usr/bin:/bin")];
    let exhausted = delegated(&node, "exhausted");
    let error = call_plugin(&node.namespace, &environment, &exhausted).expect_err("forwarded");
    assert_eq!(error["code"], 50);
}

/// CNI-21: GC removes links, rules, addresses and records of all others, also those of which only
/// a part is there, and touches neither the living nor other networks.
#[test]
fn gc_leaves_the_living_and_other_networks_alone() {
    let node = node();
    let config = config(&node);
    let other = with(&config, "name", json!("other"));
    let other = with(
        &other,
        "ipam",
        json!({
            "type": "host-local", "dataDir": node.scratch.0, "subnet": "10.9.0.0/24",
        }),
    );
    let pods = ["dead", "lives", "torn", "old"].map(Pod::new);
    for pod in &pods {
        pod.call("ADD", &node.namespace, &config).expect("ADD");
    }
    let neighbour = Pod::new("neighbour");
    neighbour.call("ADD", &node.namespace, &other).expect("ADD to another network");
    let directory = node.scratch.0.join("records/flatnet");
    fs::write(directory.join("torn-eth0.json"), "{").expect("torn");
    fs::remove_file(directory.join("old-eth0.json")).expect("as before there were records");
    // The reservation of one whose ADD was killed before its record.
    fs::write(node.scratch.0.join("flatnet/10.244.1.99"), "killed\r\neth0").expect("written");

    let living = json!([{ "containerID": "lives", "ifname": "eth0" }]);
    assert_eq!(gc(&node, &config, &living), Ok(Value::Null));
    let has_interface = |pod: &Pod| pod.netlink().link("eth0").expect("an answer").is_some();
    assert_eq!(pods.each_ref().map(has_interface), [false, true, false, false]);
    assert!(has_interface(&neighbour), "another network on the same bridge");
    let (ends, reserved, records) = left(&node);
    assert_eq!((ends.len(), reserved.len()), (2, 1));
    assert_eq!(records, ["lives-eth0.json"]);
    assert_eq!(gc(&node, &config, &json!([])), Ok(Value::Null));
    assert_eq!((node.reserved().len(), left(&node).2.len()), (0, 0));
    assert!(has_interface(&neighbour));
}

/// CNI-21: GC goes on after a fault and tells it; what failed is tried again with the next one.
#[test]
fn gc_goes_on_after_a_fault() {
    let node = node();
    let path = install_delegate(&node);
    let pod = Pod::new("c1");
    let broken = delegated(&node, "broken");
    call_with_path(&node, &pod, &path, "ADD", &broken).expect("ADD");
    let collect = |config: &Value| {
        let environment = [("CNI_COMMAND", "GC"), ("CNI_PATH", &path), ("PATH", "/usr/bin:/bin")];
        let config = with(config, "cni.dev/valid-attachments", json!([]));
        call_plugin(&node.namespace, &environment, &config)
    };
    let error = collect(&broken).expect_err("the delegate is broken");
    assert!(error.to_string().contains("broken"), "{error}");
    let (ends, _, records) = left(&node);
    assert_eq!((ends, records), (vec![], vec!["c1-eth0.json".to_owned()]), "the link is gone");
    assert_eq!(collect(&delegated(&node, "good")), Ok(Value::Null));
    assert_eq!(left(&node), nothing());
}

/// CNI-21: a reservation that a crash tore names nobody. Where a record says whose it is, GC leaves
/// it to the living; where none does, it frees it.
#[test]
fn gc_leaves_the_living_their_torn_reservations() {
    let node = node();
    let config = config(&node);
    let pods = ["lives", "dead"].map(Pod::new);
    let mut files = Vec::new();
    for pod in &pods {
        let result = pod.call("ADD", &node.namespace, &config).expect("ADD");
        let address = result["ips"][0]["address"].as_str().unwrap_or_default().to_owned();
        let file = address.split('/').next().map(|it| node.scratch.0.join("flatnet").join(it));
        let file = file.expect("an address");
        fs::write(&file, "").expect("torn");
        files.push(file);
    }
    let living = json!([{ "containerID": "lives", "ifname": "eth0" }]);
    assert_eq!(gc(&node, &config, &living), Ok(Value::Null));
    assert_eq!(files.iter().map(|file| file.exists()).collect::<Vec<_>>(), [true, false]);
    assert_eq!(gc(&node, &config, &json!([])), Ok(Value::Null));
    assert!(!files[0].exists());
}

/// CNI-21: a GC that began while an ADD was under way cannot know it, and leaves it alone.
#[test]
fn gc_never_takes_what_an_add_is_just_making() {
    let node = node();
    let config = config(&node);
    let fifo = node.scratch.0.join("resolv.conf");
    let path = CString::new(fifo.as_os_str().as_encoded_bytes()).expect("a path");
    nix::unistd::mkfifo(path.as_c_str(), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let mut slow = config.clone();
    slow["ipam"]["resolvConf"] = json!(fifo);
    let pod = Pod::new("new");
    std::thread::scope(|scope| {
        let add = scope.spawn(|| pod.call("ADD", &node.namespace, &slow));
        // Opens as soon as the ADD reads, which then has the lock.
        let writer = fs::OpenOptions::new().write(true).open(&fifo).expect("the ADD reads");
        let collection = scope.spawn(|| gc(&node, &config, &json!([])));
        until_someone_waits_for(&node.scratch.0.join("records/flatnet/lock"));
        drop(writer);
        add.join().expect("ended").expect("ADD");
        assert_eq!(collection.join().expect("ended"), Ok(Value::Null));
    });
    assert_eq!(node.reserved().len(), 1, "its address");
    assert!(pod.netlink().link("eth0").expect("an answer").is_some(), "its link");
    // The next GC can know it.
    assert_eq!(gc(&node, &config, &json!([])), Ok(Value::Null));
    assert_eq!(left(&node), nothing());
}

fn until_someone_waits_for(lock: &Path) {
    use std::os::unix::fs::MetadataExt;
    let inode = format!(":{} ", fs::metadata(lock).expect("the lock").ino());
    let deadline = Instant::now() + PATIENCE;
    let waits = |line: &str| line.contains("-> FLOCK") && line.contains(&inode);
    while !fs::read_to_string("/proc/locks").expect("locks").lines().any(waits) {
        assert!(Instant::now() < deadline, "nobody waits for {}", lock.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// R-09: after a reboot the addresses of its pods are free again with the first ADD; a pod whose
/// namespace is there keeps its own.
#[test]
fn pods_of_an_earlier_boot_give_their_addresses_back() {
    let node = node();
    let config = config(&node);
    let (restored, gone) = (Pod::new("restored"), Pod::new("gone"));
    for pod in [&restored, &gone] {
        pod.call("ADD", &node.namespace, &config).expect("ADD");
    }
    let directory = node.scratch.0.join("records/flatnet");
    let boot_id = fs::read_to_string(directory.join("boot")).expect("this boot");
    for name in ["boot", "restored-eth0.json", "gone-eth0.json"] {
        let text = fs::read_to_string(directory.join(name)).expect("a file");
        assert!(text.contains(&boot_id), "{name}");
        // Numbers of descriptors are used again, names of namespaces are not.
        let text = text.replace(&boot_id, "earlier").replace(&gone.path(), "/run/netns/gone");
        fs::write(directory.join(name), text).expect("written");
    }
    Pod::new("first").call("ADD", &node.namespace, &config).expect("ADD");
    let mut names = records(&node);
    names.sort();
    assert_eq!(names, ["first-eth0.json", "restored-eth0.json"]);
    assert_eq!(node.reserved().len(), 2);
    assert!(node.reserved().contains(&"10.244.1.2".to_owned()), "the restored pod's");
}

/// X-29: a directory that others can write is not trusted; when only its owner can, all is well.
#[test]
fn state_that_others_can_write_is_refused() {
    let node = node();
    let config = config(&node);
    let directory = node.scratch.0.join("records");
    fs::create_dir(&directory).expect("a directory");
    for (mode, works) in [(0o777, false), (0o700, true)] {
        fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).expect("changed");
        let pod = Pod::new("c1");
        let answer = pod.call("ADD", &node.namespace, &config);
        assert_eq!(answer.is_ok(), works, "{mode:o}: {answer:?}");
        if let Err(error) = answer {
            assert_eq!(error["code"], 105);
            assert_eq!(left(&node), nothing());
        }
    }
}
