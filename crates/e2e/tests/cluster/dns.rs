//! Names, asked from inside pods with the tools that people use.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::flatnet;
use e2e::eventually;
use serde_json::Value;

use super::world::{NAMESPACE, World};

/// The host's routes to Services follow the nodes within this time.
const HOST_READY: Duration = Duration::from_secs(20);

pub fn usual_tools(world: &World) -> Result<()> {
    let address = world.cluster_ip("web")?;
    let shell = |script: &str| world.cluster.exec(NAMESPACE, "tools", &["sh", "-c", script]);
    let answer = shell("curl -s --max-time 5 http://web/")?;
    ensure!(answer.contains("echo-node"), "curl http://web: {answer}");
    for name in ["web", "web.lab", "web.lab.svc", "web.lab.svc.cluster.local"] {
        let answer = shell(&format!("nslookup {name}"))?;
        ensure!(answer.contains(&address), "nslookup {name}: {answer}");
    }
    let answer = shell("getent hosts web")?;
    ensure!(answer.contains(&address), "getent hosts web: {answer}");
    let server = shell("cat /etc/resolv.conf")?;
    ensure!(
        server.contains("search lab.svc.cluster.local svc.cluster.local cluster.local"),
        "{server}"
    );
    ensure!(server.contains("ndots:5"), "{server}");
    let kubernetes = shell("dig +short kubernetes.default.svc.cluster.local")?;
    ensure!(kubernetes.trim() == "10.41.0.1", "{kubernetes}");
    // The host is where the API server runs, and so of the cluster.
    let words = ["+short", "+time=2", "+tries=1", "@10.41.0.10", "web.lab.svc.cluster.local"];
    eventually("the host's question is answered", HOST_READY, || {
        let output = Command::new("dig").args(words).output().context("dig is installed")?;
        let answer = String::from_utf8_lossy(&output.stdout);
        ensure!(answer.trim() == address, "dig from the host: {answer}");
        Ok(())
    })
}

pub fn headless_and_srv(world: &World) -> Result<()> {
    let dig = |arguments: &str| {
        let script = format!("dig +noall +answer {arguments}");
        world.cluster.exec(NAMESPACE, "tools", &["sh", "-c", &script])
    };
    let answer = dig("pods.lab.svc.cluster.local A")?;
    for node in &world.cluster.nodes {
        let address = world.pod_ip(&format!("echo-{node}"))?;
        ensure!(answer.contains(&address), "{address} is missing: {answer}");
    }
    let answer = dig("_http._tcp.web.lab.svc.cluster.local SRV")?;
    ensure!(answer.contains("80 web.lab.svc.cluster.local."), "{answer}");
    let answer = dig("_http._tcp.pods.lab.svc.cluster.local SRV")?;
    let pods = world.cluster.nodes.len();
    ensure!(answer.lines().count() == pods && answer.contains("8080 "), "{answer}");
    let answer = dig(&format!("-x {}", world.cluster_ip("web")?))?;
    ensure!(answer.contains("web.lab.svc.cluster.local."), "{answer}");
    let answer = dig("+tcp web.lab.svc.cluster.local A")?;
    ensure!(answer.contains(&world.cluster_ip("web")?), "over TCP: {answer}");
    Ok(())
}

pub fn absent_names(world: &World) -> Result<()> {
    let dig = |arguments: &str| {
        let script = format!("dig +noall +comments +authority {arguments}");
        world.cluster.exec(NAMESPACE, "tools", &["sh", "-c", &script])
    };
    let absent = dig("nobody.lab.svc.cluster.local A")?;
    ensure!(absent.contains("status: NXDOMAIN") && absent.contains("SOA"), "{absent}");
    let no_data = dig("web.lab.svc.cluster.local AAAA")?;
    ensure!(no_data.contains("status: NOERROR") && no_data.contains("SOA"), "{no_data}");
    Ok(())
}

/// How long a change may take until it is seen on a busy machine.
const SEEN: Duration = Duration::from_secs(15);
/// Changes whose time to the answers is looked at.
const CHANGES: u64 = 10;
/// Questions while the agent is away.
const QUESTIONS: u64 = 20;

/// What one dig says, but for what differs each time: the question's number. Cookies are the
/// worker's.
fn dig(world: &World, question: &str) -> Result<String> {
    let script =
        format!("dig +nocookie +time=2 +tries=1 +noall +comments +answer +authority {question}");
    let text = world.cluster.exec(NAMESPACE, "tools", &["sh", "-c", &script])?;
    let lines = text.lines().filter(|line| !line.is_empty());
    Ok(lines.map(|line| line.split(", id: ").next().unwrap_or(line)).collect::<Vec<_>>().join("\n"))
}

/// What the kernel of the pods' node says of DNS.
fn kernel(world: &World) -> Result<Value> {
    let node = world.cluster.nodes[0].as_str();
    let name = world.cluster.name.as_str();
    let text = flatnet(&["dns", "top", "--name", name, "--node", node, "-o", "json"])?;
    let tops: Value = serde_json::from_str(&text)?;
    Ok(tops[0]["kernel"].clone())
}

fn answered(world: &World) -> Result<u64> {
    let kernel = kernel(world)?;
    let count = |what: &str| kernel["questions"][what].as_u64().unwrap_or_default();
    Ok(count("answered") + count("no_data"))
}

fn kernel_answers(world: &World, expected: bool) -> Result<()> {
    eventually(&format!("the kernel answers: {expected}"), SEEN, || {
        let kernel = kernel(world)?;
        ensure!(kernel["answering"] == expected, "{kernel}");
        Ok(())
    })
}

/// The same questions with the fast path and, where a rule says that all are logged, without.
pub fn kernel_and_worker(world: &World) -> Result<()> {
    let questions = [
        "web.lab.svc.cluster.local A",
        "WEB.lab.SVC.cluster.local A +noedns",
        "web.lab.svc.cluster.local AAAA",
        "pods.lab.svc.cluster.local AAAA +bufsize=512",
        "kubernetes.default.svc.cluster.local A +norecurse",
    ];
    let config = world.cluster.kubeconfig().with_file_name("dns.yaml");
    eventually("kernel and worker say the same", SEEN, || {
        kernel_answers(world, true)?;
        let before = answered(world)?;
        let with = questions.map(|question| dig(world, question));
        let moved = answered(world)? - before;
        ensure!(moved >= questions.len() as u64, "only {moved} were answered in the kernel");
        std::fs::write(&config, "log: all\n")?;
        let compared = kernel_answers(world, false).and_then(|()| {
            let counted = kernel(world)?;
            ensure!(counted["reason"].to_string().contains("option log"), "{counted}");
            for (question, with) in questions.iter().zip(with) {
                let (with, without) = (with?, dig(world, question)?);
                ensure!(with == without, "{question}: {with}\nand by the worker\n{without}");
            }
            Ok(())
        });
        std::fs::remove_file(&config)?;
        compared
    })?;
    kernel_answers(world, true)
}

/// Which objects have names, by the configuration: in the kernel and by the worker, and as labels of
/// namespaces change.
pub fn chosen_names(world: &World) -> Result<()> {
    const OTHER: &str = "kubernetes.default.svc.cluster.local";
    const OWN: &str = "web.lab.svc.cluster.local";
    let config = world.cluster.kubeconfig().with_file_name("dns.yaml");
    let address = world.cluster_ip("web")?;
    let seen = |what: &str, own: bool, other: bool| {
        eventually(what, SEEN, || {
            for (name, address, is_there) in
                [(OWN, address.as_str(), own), (OTHER, "10.41.0.1", other)]
            {
                let answer = dig(world, &format!("{name} A"))?;
                let expected = if is_there { format!("A\t{address}") } else { "NXDOMAIN".into() };
                ensure!(answer.contains(&expected), "{what}: {name}: {answer}");
            }
            let kernel = kernel(world)?;
            ensure!(kernel["answering"] == true, "{kernel}");
            Ok(())
        })
    };
    let chosen = || -> Result<()> {
        std::fs::write(&config, "kubernetes: {namespaces: [lab]}\n")?;
        seen("the namespace that was named", true, false)?;
        let before = answered(world)?;
        dig(world, &format!("{OWN} A"))?;
        ensure!(answered(world)? > before, "the kernel does not answer");
        std::fs::write(&config, "kubernetes: {namespace_labels: 'example.com/dns=on'}\n")?;
        seen("no namespace has the label", false, false)?;
        world.cluster.kubectl(&["label", "namespace", "default", "example.com/dns=on"])?;
        seen("the namespace that got the label", false, true)?;
        world.cluster.kubectl(&["label", "namespace", "default", "example.com/dns-"])?;
        seen("the namespace that lost the label", false, false)
    };
    let done = chosen();
    std::fs::remove_file(&config)?;
    done?;
    seen("all names are back", true, true)
}

/// Invariant 14: what the agent left answers on, and its successor takes it over.
pub fn kernel_without_agent(world: &World) -> Result<()> {
    kernel_answers(world, true)?;
    let agent = format!("agent/{}", world.cluster.nodes[0]);
    let (old, before) = (world.cluster.process(&agent)?, answered(world)?);
    let killed = Command::new("kill").args(["-9", &old.to_string()]).status()?;
    ensure!(killed.success(), "kill -9 {old}");
    let script = format!(
        "for n in $(seq {QUESTIONS}); do dig +nocookie +time=2 +tries=1 +short web.lab.svc.cluster.local; done"
    );
    let answers = world.cluster.exec(NAMESPACE, "tools", &["sh", "-c", &script])?;
    let address = world.cluster_ip("web")?;
    ensure!(
        answers.lines().filter(|line| *line == address).count() as u64 == QUESTIONS,
        "{answers}"
    );
    eventually("the agent is back", SEEN, || {
        ensure!(world.cluster.process(&agent)? != old, "still the old process");
        kernel_answers(world, true)
    })?;
    let moved = answered(world)? - before;
    ensure!(moved >= QUESTIONS, "only {moved} were answered in the kernel");
    Ok(())
}

/// Counts of a histogram: changes that took at most 20 ms, and all.
fn lag(world: &World, port: u16, name: &str, labels: &str) -> Result<(u64, u64)> {
    let url = format!("http://127.0.0.1:{port}/metrics");
    let node = &world.cluster.nodes[0];
    let page = world.cluster.on_node(node, &["curl", "-s", "--max-time", "5", &url])?;
    let count = |line: String| {
        let found = page.lines().find_map(|one| one.strip_prefix(&line)?.trim().parse().ok());
        found.with_context(|| format!("{line} is not in {page}"))
    };
    let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    let separator = if labels.is_empty() { "" } else { "," };
    let bucket = format!("{name}_bucket{{{labels}{separator}le=\"0.02\"}}");
    Ok((count(bucket)?, count(format!("{name}_count{braces}"))?))
}

/// A headless Service follows its endpoints in worker and kernel. How fast is in their metrics; on a
/// busy machine only some changes make it within 20 ms.
pub fn changes_are_fresh(world: &World) -> Result<()> {
    kernel_answers(world, true)?;
    let lags = || -> Result<_> {
        let name = "coredns_kubernetes_dns_programming_duration_seconds";
        let worker = lag(world, 9153, name, "service_kind=\"headless_without_selector\"")?;
        let kernel = lag(world, 10256, "flatnet_dns_fast_path_programming_duration_seconds", "")?;
        Ok([worker, kernel])
    };
    let before = lags()?;
    world.cluster.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: fresh, namespace: lab}\nspec:\n  \
         clusterIP: None\n  ports: [{name: http, port: 80}]\n",
    )?;
    for change in 1..=CHANGES {
        let address = format!("10.40.200.{change}");
        world.cluster.apply(&format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: fresh-1, namespace: lab, labels: {{kubernetes.io/service-name: fresh}}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 80, protocol: TCP}}]\n\
             endpoints: [{{addresses: [{address}], hostname: one, conditions: {{ready: true}}}}]\n"
        ))?;
        for question in ["fresh.lab.svc.cluster.local", "one.fresh.lab.svc.cluster.local +tcp"] {
            eventually(&format!("{question} is {address}"), SEEN, || {
                let answer = dig(world, question)?;
                ensure!(answer.contains(&format!("A\t{address}")), "{answer}");
                Ok(())
            })?;
        }
    }
    world.cluster.kubectl(&["delete", "service", "-n", NAMESPACE, "fresh"])?;
    eventually("the name is gone", SEEN, || {
        let answer = dig(world, "fresh.lab.svc.cluster.local")?;
        ensure!(answer.contains("NXDOMAIN"), "{answer}");
        Ok(())
    })?;
    for (what, (before, after)) in ["worker", "kernel"].iter().zip(before.iter().zip(lags()?)) {
        let (fast, all) = (after.0 - before.0, after.1 - before.1);
        println!("    {what}: {fast} of {all} changes within 20 ms");
        ensure!(all >= CHANGES, "{what}: {all} changes were counted");
        ensure!(fast > 0, "{what}: no change of {all} was there within 20 ms");
    }
    Ok(())
}

/// `flatnet dns query`, by a pod's name and by its address, and where nobody asks.
pub fn explained(world: &World) -> Result<()> {
    kernel_answers(world, true)?;
    let name = world.cluster.name.as_str();
    let query = |question: &[&str]| {
        let mut all = vec!["dns", "query", "--name", name];
        all.extend(question);
        flatnet(&all)
    };
    let (web, own) = (world.cluster_ip("web")?, world.pod_ip("tools")?);
    for from in ["lab/tools", own.as_str()] {
        let node = world.cluster.nodes[0].as_str();
        let text = query(&["web.lab.svc.cluster.local", "--from", from, "--node", node])?;
        for expected in
            ["asked by a pod of the namespace lab", "answered in the kernel: ", "NOERROR", &web]
        {
            ensure!(text.contains(expected), "{from}: {expected:?} is not in {text}");
        }
    }
    // A pod's node is found; its search path leads to the other namespace.
    let text = query(&["kubernetes.default.lab.svc.cluster.local", "--from", "lab/tools"])?;
    for expected in ["answered by the worker: ", "search path: kubernetes.default.svc", "10.41.0.1"]
    {
        ensure!(text.contains(expected), "{expected:?} is not in {text}");
    }
    ensure!(text.matches("asked by").count() == 1, "one node is asked: {text}");
    let text = query(&["web.lab.svc.cluster.local", "-o", "json"])?;
    let all: Value = serde_json::from_str(&text)?;
    ensure!(all.as_array().is_some_and(|all| all.len() == world.cluster.nodes.len()), "{text}");
    ensure!(all[0]["kernel"].is_null() && all[0]["code"] == "NOERROR", "{text}");
    let refused = query(&["web.lab.svc.cluster.local", "--from", "lab/nobody"]);
    let said = format!("{:#}", refused.expect_err("there is no such pod"));
    ensure!(said.contains("lab/nobody"), "{said}");
    Ok(())
}

/// `flatnet dns top`, `check` and `import`.
pub fn operators(world: &World) -> Result<()> {
    let name = world.cluster.name.as_str();
    for _ in 0..3 {
        dig(world, "nobody.lab.svc.cluster.local A")?;
    }
    let text = flatnet(&["dns", "top", "--name", name, "--node", &world.cluster.nodes[0]])?;
    for expected in
        ["nobody.lab.svc.cluster.local", &world.pod_ip("tools")?, "answered by the kernel"]
    {
        ensure!(text.contains(expected), "{expected:?} is not in {text}");
    }
    let directory = std::env::temp_dir().join(format!("flatnet-dns-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let done = files_are_read(&directory);
    std::fs::remove_dir_all(&directory)?;
    done
}

fn files_are_read(directory: &Path) -> Result<()> {
    let file = |name: &str, text: &str| -> Result<String> {
        let path = directory.join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let wrong = file("wrong.yaml", "log: none\nttl: 5s\n")?;
    let said = format!("{:#}", flatnet(&["dns", "check", &wrong]).expect_err("no such field"));
    ensure!(said.contains("line 2") && said.contains("ttl"), "{said}");
    let corefile = file(
        "Corefile",
        ".:53 {\n  kubernetes cluster.local {\n    ttl 30\n  }\n  forward . 192.0.2.53\n  cache 30\n}\n",
    )?;
    let imported = file("dns.yaml", &flatnet(&["dns", "import", &corefile])?)?;
    let checked = flatnet(&["dns", "check", &imported])?;
    ensure!(checked.contains("good"), "{checked}");
    let text = std::fs::read_to_string(&imported)?;
    ensure!(text.contains("192.0.2.53") && text.contains("30s"), "{text}");
    Ok(())
}

/// Pods that ask for their own names with their first instruction.
const NEW_PODS: usize = 20;

/// What such a pod does: its name by the system, and its record by cluster DNS, until it is there.
const ASK_FOR_ITSELF: &str = "getent hosts $(hostname -f) || exit 1; ip=$(hostname -i); \
    for n in $(seq 100); do dig +short +nocookie \
    $(echo $ip | tr . -).lab.pod.cluster.local | grep -qx $ip && break; sleep 0.1; done; \
    echo $ip $(hostname -f) question $n";

/// A pod has its own names from its first instruction on.
pub fn own_names(world: &World) -> Result<()> {
    let mut manifest = "apiVersion: v1\nkind: Service\nmetadata: {name: own, namespace: lab}\n\
        spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: own}}\n"
        .to_owned();
    for number in 0..NEW_PODS {
        let node = &world.cluster.nodes[number % world.cluster.nodes.len()];
        manifest.push_str(&format!(
            "---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: own-{number}, namespace: {NAMESPACE}, labels: {{app: own}}}}\n\
             spec:\n  nodeName: {node}\n  hostname: own-{number}\n  subdomain: own\n  \
             restartPolicy: Never\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
             - {{name: ask, image: localhost/host, command: [sh, -c, '{ASK_FOR_ITSELF}']}}\n"
        ));
    }
    world.cluster.apply(&manifest)?;
    let mut at_once = 0;
    for number in 0..NEW_PODS {
        let pod = format!("own-{number}");
        let limit = Duration::from_secs(60);
        let said = world.cluster.pod_logs_at_end(NAMESPACE, &pod, limit)?;
        let full = format!("own-{number}.own.lab.svc.cluster.local");
        let last = said.lines().last().unwrap_or_default();
        let words: Vec<&str> = last.split(' ').collect();
        let [address, name, "question", question] = words.as_slice() else {
            anyhow::bail!("{pod}: {said}");
        };
        ensure!(*name == full && said.starts_with(address), "{pod}: {said}");
        let question: usize = question.parse()?;
        ensure!(question < 100, "{pod} has no record of its own: {said}");
        at_once += usize::from(question == 1);
    }
    println!("    {at_once} of {NEW_PODS} pods had their record at their first question");
    // A busy machine may start pods before it lets the agent hear of their links.
    ensure!(at_once > 0, "none of {NEW_PODS} had its record at its first question");
    let labels = ["delete", "pod", "-n", NAMESPACE, "-l", "app=own", "--now"];
    world.cluster.kubectl(&labels)?;
    world.cluster.kubectl(&["delete", "service", "-n", NAMESPACE, "own"]).map(drop)
}
