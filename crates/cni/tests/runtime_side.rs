//! Our runtime side with plugins that write down how they were called: CNI-22 and CNI-23.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use cni::config::ValidAttachment;
use cni::runtime_side::{Driver, List, Target};
use serde_json::{Value, json};

/// Plugins `one` and `two`, a cache, and what the plugins wrote down.
struct Bench {
    directory: PathBuf,
    driver: Driver,
}

impl Bench {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("flatnet-runtime-side-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let plugins = directory.join("plugins");
        fs::create_dir_all(&plugins).expect("a directory");
        for kind in ["one", "two"] {
            // Each call is a file: its number, and the environment and input of the call. A
            // plugin fails at the commands that its configuration names.
            let script = format!(
                "#!/bin/sh\ninput=$(cat)\n\
                 number=$(ls {calls} | wc -l)\n\
                 printf '%s\\n' \"{kind} $CNI_COMMAND\" \
                 \"$CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS $CNI_PATH $HOME\" \
                 \"$input\" > {calls}/$(printf %03d $number)\n\
                 case \"$input\" in *\\\"fail-$CNI_COMMAND\\\"*) \
                 echo '{{\"code\":100,\"msg\":\"{kind} is broken\",\"details\":\"\"}}'; exit 1;; esac\n\
                 [ $CNI_COMMAND != ADD ] || \
                 echo '{{\"cniVersion\":\"1.1.0\",\"ips\":[],\"dns\":{{\"domain\":\"{kind}\"}}}}'\n",
                calls = directory.join("calls").display()
            );
            let file = plugins.join(kind);
            fs::write(&file, script).expect("a script");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("executable");
        }
        fs::create_dir(directory.join("calls")).expect("a directory");
        let driver =
            Driver { plugin_path: vec![plugins], cache_directory: directory.join("cache") };
        Self { directory, driver }
    }

    /// The calls since the last time: plugin and command, the environment, the input.
    fn calls(&self) -> Vec<(String, String, Value)> {
        let directory = self.directory.join("calls");
        let mut files: Vec<PathBuf> = fs::read_dir(directory)
            .expect("the calls")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        files.sort();
        let read = |file: &PathBuf| {
            let text = fs::read_to_string(file).expect("a call");
            fs::remove_file(file).expect("removed");
            let mut lines = text.splitn(3, '\n').map(str::to_owned);
            let mut next = || lines.next().expect("a line");
            (next(), next(), serde_json::from_str(&next()).expect("JSON"))
        };
        files.iter().map(read).collect()
    }

    fn names(&self) -> Vec<String> {
        self.calls().into_iter().map(|(name, _, _)| name).collect()
    }

    fn cached(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.join("cache/results"));
        let names = entries.into_iter().flatten().flatten().map(|entry| entry.file_name());
        let names = names.filter_map(|name| name.into_string().ok());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn list(further: Value) -> List {
    let mut document = json!({
        "cniVersion": "1.1.0", "name": "net",
        "plugins": [{ "type": "one", "capabilities": { "ips": true } }, { "type": "two" }],
    });
    for (key, value) in further.as_object().expect("keys") {
        document[key] = value.clone();
    }
    List::from_value(document).expect("a list")
}

fn target(container_id: &str) -> Target {
    let capabilities = json!({ "ips": ["10.0.0.9"] });
    Target {
        container_id: container_id.into(),
        namespace: "/run/netns/x".into(),
        interface: "eth0".into(),
        arguments: vec![("A".into(), "1".into()), ("B".into(), "2".into())],
        capabilities: capabilities.as_object().cloned().expect("an object"),
    }
}

/// CNI-22: order, prevResult, runtimeConfig, environment.
#[test]
fn plugins_run_in_order_and_back_with_the_results_that_they_are_due() {
    let bench = Bench::new();
    let (list, target) = (list(json!({})), target("c1"));
    let result = bench.driver.add(&list, &target).expect("ADD");
    assert_eq!(result["dns"]["domain"], "two");
    let calls = bench.calls();
    let path = bench.directory.join("plugins");
    // HOME and whatever else we were started with is not passed on.
    let environment = format!("c1 /run/netns/x eth0 A=1;B=2 {} ", path.display());
    let one = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "one",
        "runtimeConfig": { "ips": ["10.0.0.9"] },
    });
    let first = json!({ "cniVersion": "1.1.0", "ips": [], "dns": { "domain": "one" } });
    let two = json!({ "cniVersion": "1.1.0", "name": "net", "type": "two", "prevResult": first });
    let expected =
        [("one ADD".into(), environment.clone(), one), ("two ADD".into(), environment, two)];
    assert_eq!(calls, expected);

    bench.driver.check(&list, &target).expect("CHECK");
    bench.driver.del(&list, &target).expect("DEL");
    let calls = bench.calls();
    let names: Vec<&str> = calls.iter().map(|(name, _, _)| name.as_str()).collect();
    assert_eq!(names, ["one CHECK", "two CHECK", "two DEL", "one DEL"]);
    assert!(calls.iter().all(|(_, _, input)| input["prevResult"] == result), "the final result");
    bench.driver.del(&list, &target).expect("DEL again");
    assert!(bench.calls().iter().all(|(_, _, input)| input.get("prevResult").is_none()));
}

/// CNI-22: the cache has libcni's form, is private, and goes with DEL.
#[test]
fn results_are_kept_as_libcni_keeps_them_until_del() {
    let bench = Bench::new();
    let (list, target) = (list(json!({})), target("c1"));
    let result = bench.driver.add(&list, &target).expect("ADD");
    let directory = bench.directory.join("cache/results");
    let file = directory.join("net-c1-eth0");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
    assert_eq!((mode(&directory), mode(&file)), (0o700, 0o600));
    let mut entry: Value = serde_json::from_slice(&fs::read(&file).expect("a file")).expect("JSON");
    let config = entry["config"].take();
    assert!(config.as_str().is_some_and(|text| text.starts_with("eyJ")), "base64 of JSON");
    let expected = json!({
        "kind": "cniCacheV1", "containerId": "c1", "config": null, "ifName": "eth0",
        "networkName": "net", "netns": "/run/netns/x", "cniArgs": [["A", "1"], ["B", "2"]],
        "capabilityArgs": { "ips": ["10.0.0.9"] }, "result": result,
    });
    assert_eq!(entry, expected);
    let twice = bench.driver.add(&list, &target).expect_err("added already");
    assert!(twice.message.contains("on the network net already"), "{twice}");
    bench.driver.del(&list, &target).expect("DEL");
    assert_eq!(bench.cached(), [] as [&str; 0]);

    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).expect("changed");
    let fault = bench.driver.add(&list, &target).expect_err("X-29: others could write it");
    assert_eq!(fault.code, cni::fault::STATE_STORE);
}

/// CNI-22: a plugin that fails ends ADD and DEL; what is kept stays until a DEL that works.
#[test]
fn a_failed_del_is_tried_again_with_the_same_result() {
    let bench = Bench::new();
    let target = target("c1");
    let good = list(json!({}));
    let broken = |what: &str| {
        list(json!({ "plugins": [{ "type": "one", "mode": what }, { "type": "two" }] }))
    };
    let fault = bench.driver.add(&broken("fail-ADD"), &target).expect_err("broken");
    assert_eq!(fault.message, "plugin type=\"one\" failed (add): one is broken");
    assert_eq!((bench.names(), bench.cached()), (vec!["one ADD".into()], vec![]));

    bench.driver.add(&good, &target).expect("ADD");
    bench.names();
    bench.driver.del(&broken("fail-DEL"), &target).expect_err("broken");
    assert_eq!(
        (bench.names(), bench.cached().len()),
        (vec!["two DEL".into(), "one DEL".into()], 1)
    );
    bench.driver.del(&good, &target).expect("DEL");
    assert!(bench.calls().iter().all(|(_, _, input)| input.get("prevResult").is_some()));
}

/// CNI-22, CNI-19: what a list switches off or its version does not have is not done.
#[test]
fn lists_decide_whether_check_and_gc_are_done() {
    let bench = Bench::new();
    let target = target("c1");
    bench.driver.add(&list(json!({})), &target).expect("ADD");
    bench.names();
    for off in [json!(true), json!("true")] {
        let list = list(json!({ "disableCheck": off, "disableGC": off }));
        bench.driver.check(&list, &target).expect("not done");
        bench.driver.gc(&list, &[]).expect("not done");
    }
    assert_eq!((bench.names(), bench.cached().len()), (vec![], 1));
    let old = list(json!({ "cniVersion": "0.3.1" }));
    assert_eq!(bench.driver.check(&old, &target).expect_err("too old").code, 1);
    bench.driver.status(&old).expect("cannot be asked");
    bench.driver.del(&old, &target).expect("DEL");
    let calls = bench.calls();
    assert_eq!(calls.len(), 2);
    assert!(calls.iter().all(|(_, _, input)| input.get("prevResult").is_none()), "before 0.4.0");
    assert_eq!(bench.driver.check(&list(json!({})), &target).expect_err("no result").code, 7);
}

/// CNI-23: STATUS and GC ask every plugin, whatever one of them answers; GC deletes what lives no
/// more first.
#[test]
fn every_plugin_is_asked_whatever_the_others_answer() {
    let bench = Bench::new();
    let list = |what: &str| {
        list(
            json!({ "plugins": [{ "type": "one", "mode": what }, { "type": "two", "mode": what }] }),
        )
    };
    let fault = bench.driver.status(&list("fail-STATUS")).expect_err("broken");
    assert!(fault.message.contains("one is broken"), "{fault}");
    assert!(fault.details.contains("two is broken"), "{fault}");
    assert_eq!(bench.names(), ["one STATUS", "two STATUS"]);

    for id in ["lives", "dead"] {
        bench.driver.add(&list(""), &target(id)).expect("ADD");
    }
    bench.names();
    let living = [ValidAttachment { container_id: "lives".into(), interface: "eth0".into() }];
    bench.driver.gc(&list("fail-GC"), &living).expect_err("broken");
    let calls = bench.calls();
    let names: Vec<&str> = calls.iter().map(|(name, _, _)| name.as_str()).collect();
    assert_eq!(names, ["two DEL", "one DEL", "one GC", "two GC"]);
    assert!(calls[0].1.starts_with("dead /run/netns/x eth0 A=1;B=2 "), "as it was added");
    let expected = json!([{ "containerID": "lives", "ifname": "eth0" }]);
    assert_eq!(calls[2].2["cni.dev/valid-attachments"], expected);
    assert_eq!(bench.cached(), ["net-lives-eth0"]);
}

/// CNI-23: a GC waits for a running ADD, and its DELs are of what was added before.
#[test]
fn gc_excludes_adds() {
    let bench = Bench::new();
    // As an ADD that is under way: it has the lock as one of many.
    bench.driver.add(&list(json!({})), &target("c1")).expect("ADD");
    bench.names();
    let file = fs::File::open(bench.directory.join("cache/results/.net.lock")).expect("the lock");
    let running = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockShared).expect("locked");
    std::thread::scope(|scope| {
        let collection = scope.spawn(|| bench.driver.gc(&list(json!({})), &[]));
        bench.driver.add(&list(json!({})), &target("c2")).expect("ADDs do not exclude each other");
        assert!(!collection.is_finished());
        drop(running);
        collection.join().expect("ended").expect("GC");
    });
    assert_eq!(bench.cached(), [] as [&str; 0]);
}

#[test]
fn wrong_targets_are_refused_before_any_plugin_runs() {
    let bench = Bench::new();
    let changes: [fn(&mut Target); 4] = [
        |target| target.container_id = "../x".into(),
        |target| target.interface = "a/b".into(),
        |target| target.arguments = vec![("A;B".into(), "1".into())],
        |target| target.arguments = vec![("A".into(), "1;IgnoreUnknown=1".into())],
    ];
    for change in changes {
        let mut target = target("c1");
        change(&mut target);
        bench.driver.add(&list(json!({})), &target).expect_err("refused");
    }
    assert_eq!((bench.names(), bench.cached()), (vec![], vec![]));
}
