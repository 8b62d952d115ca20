//! Port-forward, copies, attach and interactive runs, as kubectl's users know them: Debian's 1.20
//! speaks SPDY, a newer one websockets.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::Kubectl;

use super::kubectl::clients;
use super::world::{NAMESPACE, World};

/// Longest wait for an answer through a forwarded port.
const ANSWER: Duration = Duration::from_secs(30);

/// A kubectl that forwards a port of this machine. It ends with this value.
struct Forward {
    kubectl: Child,
    /// Kept open: kubectl writes a line for every connection, and ends when nobody can read it.
    output: BufReader<ChildStdout>,
    port: u16,
}

impl Forward {
    fn start(world: &World, client: Kubectl, target: &str, port: u16) -> Result<Self> {
        let arguments = ["port-forward", "-n", NAMESPACE, target, &format!(":{port}")];
        let mut command = world.cluster.kubectl_command(client, &arguments);
        let mut kubectl = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let output = BufReader::new(kubectl.stdout.take().context("no output")?);
        let mut forward = Self { kubectl, output, port: 0 };
        let mut line = String::new();
        forward.output.read_line(&mut line)?;
        // `Forwarding from 127.0.0.1:40000 -> 8080`
        let local = line.strip_prefix("Forwarding from 127.0.0.1:");
        let local = local.and_then(|rest| rest.split(' ').next()?.parse().ok());
        forward.port = local.with_context(|| format!("kubectl said {line:?}"))?;
        Ok(forward)
    }

    /// One GET on a connection of its own, to the end of the answer.
    fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(ANSWER))?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

pub fn port_forward(world: &World) -> Result<()> {
    for client in clients(world) {
        for (target, port) in [("pod/echo-node1", 8080), ("service/web", 80)] {
            let forward = Forward::start(world, client, target, port)?;
            std::thread::scope(|scope| {
                let gets: Vec<_> = (0..8).map(|_| scope.spawn(|| forward.get("/"))).collect();
                gets.into_iter().try_for_each(|get| {
                    let answer = get.join().expect("a thread that ends")?;
                    ensure!(answer.starts_with("HTTP/1.1 200"), "{client:?} {target}: {answer:?}");
                    ensure!(answer.contains("echo-node"), "{client:?} {target}: {answer:?}");
                    Ok(())
                })
            })?;
        }
    }
    Ok(())
}

pub fn refused(world: &World) -> Result<()> {
    for client in clients(world) {
        let mut forward = Forward::start(world, client, "pod/tools", 81)?;
        let answer = forward.get("/").unwrap_or_default();
        ensure!(answer.is_empty(), "{client:?}: nobody listens there, and {answer:?} came");
        let complaints = forward.kubectl.stderr.take().context("no errors")?;
        let expected = "dial tcp4 127.0.0.1:81: connect: connection refused";
        let mut said = String::new();
        for line in BufReader::new(complaints).lines() {
            said.push_str(&line?);
            if said.contains(expected) {
                break;
            }
        }
        ensure!(said.contains(expected), "{client:?} said {said:?}");
        ensure!(said.contains("error forwarding port 81 to pod tools"), "{client:?}: {said:?}");
    }
    Ok(())
}

pub fn copy(world: &World) -> Result<()> {
    let directory = std::env::temp_dir().join(format!("flatnet-copy-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let copied = clients(world).into_iter().try_for_each(|client| {
        let (there, back) = (directory.join("there"), directory.join("back"));
        // Every byte, and more than all buffers hold.
        let content: Vec<u8> = (0..3_000_000_u32).map(|at| (at ^ (at >> 8)) as u8).collect();
        fs::write(&there, &content)?;
        let _ = fs::remove_file(&back);
        let remote = format!("{NAMESPACE}/tools:/tmp/copied");
        let (there, back) = (there.display().to_string(), back.display().to_string());
        world.cluster.kubectl_by(client, &["cp", &there, &remote])?;
        world.cluster.kubectl_by(client, &["cp", &remote, &back])?;
        ensure!(fs::read(&back)? == content, "{client:?}: what came back is another file");
        world.cluster.exec(NAMESPACE, "tools", &["rm", "/tmp/copied"]).map(drop)
    });
    fs::remove_dir_all(&directory)?;
    copied
}

/// A command whose input and output the test holds. It ends with this value.
struct Interactive {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    said: String,
}

impl Interactive {
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, input, output, said: String::new() })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        Ok(self.input.as_mut().context("its input has ended")?.write_all(line.as_bytes())?)
    }

    /// Reads until a line holds what is wanted.
    fn until(&mut self, wanted: &str) -> Result<()> {
        while !self.said.contains(wanted) {
            let mut line = Vec::new();
            let count = self.output.read_until(b'\n', &mut line)?;
            ensure!(count > 0, "it ended without {wanted:?}: {:?}", self.said);
            self.said.push_str(&String::from_utf8_lossy(&line));
        }
        Ok(())
    }

    /// All that it says, and its exit code.
    fn finish(mut self) -> Result<(String, Option<i32>)> {
        let mut rest = Vec::new();
        self.output.read_to_end(&mut rest)?;
        self.said.push_str(&String::from_utf8_lossy(&rest));
        let status = self.child.wait()?;
        Ok((std::mem::take(&mut self.said), status.code()))
    }
}

impl Drop for Interactive {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `kubectl run` of a pod that is removed afterwards.
fn run_command(world: &World, client: Kubectl, flag: &str, script: &str) -> Command {
    let start = ["run", "once", "-n", NAMESPACE, flag, "--rm", "--restart=Never"];
    let rest = ["--image=localhost/host", "--", "sh", "-c", script];
    world.cluster.kubectl_command(client, &[start.as_slice(), rest.as_slice()].concat())
}

fn is_gone(world: &World, pod: &str) -> Result<()> {
    let error = world.cluster.kubectl(&["get", "pod", pod, "-n", NAMESPACE]).err();
    let error = error.with_context(|| format!("pod {pod} is still there"))?;
    ensure!(format!("{error:#}").contains("not found"), "{error:#}");
    Ok(())
}

pub fn run_interactively(world: &World) -> Result<()> {
    for client in clients(world) {
        // Input to its end, output and exit code: what pipelines live on.
        let mut run = run_command(world, client, "-i", "sort; exit 7");
        let mut run = Interactive::start(&mut run)?;
        run.say("two\none\n")?;
        run.input = None;
        let (said, code) = run.finish()?;
        ensure!(said.contains("one\ntwo\n"), "{client:?}: {said:?}");
        ensure!(code == Some(7), "{client:?} ended with {code:?}: {said:?}");
        is_gone(world, "once")?;
        // A terminal: `script` gives kubectl one.
        let run = run_command(world, client, "-it", "sh");
        let line = format!("{run:?}").replace('"', "'");
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]);
        let mut run = Interactive::start(&mut script)?;
        run.say("test -t 0 && echo at$((40 + 2)) $(tty)\n")?;
        run.until("at42 /dev/pts/0")?;
        run.say("exit 9\n")?;
        let (said, code) = run.finish()?;
        ensure!(code == Some(9), "{client:?} ended with {code:?}: {said:?}");
        is_gone(world, "once")?;
    }
    Ok(())
}

pub fn attach(world: &World) -> Result<()> {
    world.cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: listener, namespace: lab}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: localhost/host
    stdin: true
    command: [sh, -c, "while read line; do echo \"got $line\"; done"]
"#,
    )?;
    world.cluster.pod_ready(NAMESPACE, "listener")?;
    for (number, client) in clients(world).into_iter().enumerate() {
        let arguments = ["attach", "-i", "-n", NAMESPACE, "listener"];
        let mut attached =
            Interactive::start(&mut world.cluster.kubectl_command(client, &arguments))?;
        attached.say(&format!("{number}\n"))?;
        attached.until(&format!("got {number}\n"))?;
        attached.input = None;
        let (said, code) = attached.finish()?;
        ensure!(code == Some(0), "{client:?} ended with {code:?}: {said:?}");
        let logs = world.cluster.kubectl(&["logs", "listener", "-n", NAMESPACE])?;
        ensure!(logs.contains(&format!("got {number}\n")), "the log has it as well: {logs:?}");
    }
    world.cluster.kubectl(&["delete", "pod", "listener", "-n", NAMESPACE]).map(drop)
}
