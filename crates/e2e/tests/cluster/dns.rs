//! Names, asked from inside pods with the tools that people use.

use anyhow::{Result, ensure};

use super::world::{NAMESPACE, World};

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
    Ok(())
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
