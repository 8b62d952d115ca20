//! IPVS takes over from nftables and gives back to it, as an agent does it: by `kernel::Linux` and
//! `render::diff`, under connections that stay open and others that begin all the time.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernel::Linux;
use model::{Family, NamespacedName, Protocol, ServiceBackend};
use netlink::Netns;
use netlink::ipvs::Ipvs;
use render::net::NetProgram;
use render::owned::IPVS_LINK;
use render::{Kernel, Program};
use socket2::SockRef;
use testkit::emulated::Feature;

use crate::DRAINED;
use crate::common::{DEADLINE, Scene, service, to};

/// Readings of the kernel until nothing is left to do.
const ROUNDS_MAX: usize = 8;
const PORT: u16 = 8080;

/// An agent's hands.
struct Node {
    scene: Scene,
    linux: Linux,
}

impl Node {
    fn new(family: Family) -> Self {
        let scene = Scene::new(family);
        let linux = scene.node.run(|| Linux::open().expect("the kernel")).expect("the node");
        Self { scene, linux }
    }

    /// Brings the node's Services to a backend.
    fn take(&mut self, backend: ServiceBackend) {
        self.scene.config.service_backend = backend;
        let Scene { desired, config, facts, .. } = &self.scene;
        let program = render::render(desired, config, facts);
        // The links are the scene's.
        self.bring(&Program { net: NetProgram::default(), ..program });
    }

    fn bring(&mut self, program: &Program) {
        for _ in 0..ROUNDS_MAX {
            if self.step(program) == 0 {
                return;
            }
        }
        panic!("it does not come to an end");
    }

    /// Answers how much there was to do.
    fn step(&mut self, program: &Program) -> usize {
        let linux = &mut self.linux;
        let work = || {
            let ops = render::diff(program, &linux.observe().expect("observe"));
            for (op, result) in ops.iter().zip(linux.apply(&ops)) {
                result.unwrap_or_else(|error| panic!("{error} at {op:?}"));
            }
            ops.len()
        };
        self.scene.node.run(work).expect("the node")
    }

    /// Connections that IPVS has at all its servers.
    fn connections(&self) -> u32 {
        let count = || {
            let mut ipvs = Ipvs::open().expect("IPVS");
            let servers = ipvs.servers().expect("servers");
            let ends = servers.iter().flat_map(|(id, _)| ipvs.destinations(*id).expect("ends"));
            ends.map(|end| end.active + end.inactive).sum()
        };
        self.scene.node.run(count).expect("the node")
    }

    fn has_link(&self) -> bool {
        let mut netlink = netlink::Netlink::open_in(&self.scene.node).expect("netlink");
        netlink.link(IPVS_LINK).expect("links").is_some()
    }
}

/// Says its name again and again on each of its connections, until it is dropped.
struct Echo {
    stop: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(namespace: &Netns, name: &'static str) -> Self {
        let any = SocketAddr::from(([0_u16; 8], PORT));
        let listener = namespace.run(|| TcpListener::bind(any).expect("the port")).expect("a pod");
        SockRef::from(&listener).set_read_timeout(Some(Duration::from_millis(50))).expect("set");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let serve = move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    std::thread::spawn(move || say(stream, name));
                }
            }
        };
        Self { stop, listener: Some(std::thread::spawn(serve)) }
    }
}

fn say(mut stream: TcpStream, name: &str) {
    // The listener's would hold here too. This ends with the client.
    stream.set_read_timeout(None).expect("set");
    while stream.read(&mut [0; 8]).is_ok_and(|length| length > 0) {
        if stream.write_all(name.as_bytes()).is_err() {
            return;
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.listener.take().map(JoinHandle::join);
    }
}

fn connect(from: &Netns, address: SocketAddr) -> TcpStream {
    let connect = || TcpStream::connect_timeout(&address, DEADLINE).expect("a connection");
    let stream = from.run(connect).expect("the client");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream
}

fn asked(stream: &mut TcpStream) -> String {
    stream.write_all(b"who").expect("it is open");
    let mut name = [0; 4];
    stream.read_exact(&mut name).expect("an answer");
    String::from_utf8_lossy(&name).into_owned()
}

/// Connects, asks and closes all the time.
struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<ErrorKind>>,
}

impl Load {
    fn start(from: &Netns, address: SocketAddr) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (stop.clone(), answers.clone());
        let ask = move || -> std::io::Result<()> {
            let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.write_all(b"who")?;
            stream.read_exact(&mut [0; 4])?;
            // Not in TIME_WAIT: ports would run out.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))
        };
        // A thread stays in the namespace that it was made in.
        let work = move || {
            let mut errors = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match ask() {
                    Ok(()) => drop(counted.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => errors.push(error.kind()),
                }
            }
            errors
        };
        let thread = from.run(|| std::thread::spawn(work)).expect("the client");
        Self { stop, answers, thread }
    }

    /// Waits until some more have been answered.
    fn go_on(&self) {
        let wanted = self.answers.load(Ordering::Relaxed) + 20;
        wait_until("the load is answered", DEADLINE, || {
            self.answers.load(Ordering::Relaxed) >= wanted
        });
    }

    fn finish(self) -> Vec<ErrorKind> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the load")
    }
}

fn wait_until(what: &str, patience: Duration, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("set");
}

/// no connection is cut or refused on the way there and back, and nothing is left in the end.
#[test]
fn connections_live_on_from_nftables_to_ipvs_and_back() {
    if testkit::deferred!(Feature::Ipvs, Feature::Dummy) {
        return;
    }
    for family in [Family::V4, Family::V6] {
        let mut node = Node::new(family);
        let at = node.scene.addresses();
        let web = service(at.vip, Protocol::Tcp, 80, 30_080, &to(&[at.pod2]));
        node.scene.desired.services.insert(NamespacedName::new("shop", "web"), web);
        let _echo = Echo::start(&node.scene.pod2, "pod2");
        let places = |address: IpAddr, port| SocketAddr::new(address, port);
        let (vip, node_port) = (places(at.vip, 80), places(at.node, 30_080));
        let open = |scene: &Scene| {
            let from = [(&scene.pod1, vip), (&scene.outside, vip), (&scene.outside, node_port)];
            from.map(|(client, address)| connect(client, address))
        };
        node.take(ServiceBackend::Nftables);
        let mut streams: Vec<TcpStream> = open(&node.scene).into();
        let load = Load::start(&node.scene.outside, vip);
        load.go_on();
        assert_eq!(node.connections(), 0, "{family}");

        node.take(ServiceBackend::Ipvs);
        load.go_on();
        let mut by_ipvs: Vec<TcpStream> = open(&node.scene).into();
        assert!(by_ipvs.iter_mut().chain(&mut streams).all(|stream| asked(stream) == "pod2"));
        assert!(node.connections() >= 3, "{family}: IPVS has the new ones");
        assert!(!node.linux.has_changed_silently(), "{family}");

        node.take(ServiceBackend::Nftables);
        load.go_on();
        let mut again: Vec<TcpStream> = open(&node.scene).into();
        let all = by_ipvs.iter_mut().chain(&mut streams).chain(&mut again);
        assert!(all.map(asked).all(|name| name == "pod2"), "{family}");
        assert!(node.has_link(), "{family}: IPVS has connections to wait for");
        assert_eq!(load.finish(), [], "{family}");

        by_ipvs.into_iter().for_each(reset);
        let Scene { desired, config, facts, .. } = &node.scene;
        let program = render::render(desired, config, facts);
        let program = Program { net: NetProgram::default(), ..program };
        wait_until("the canary sees that IPVS has no connections", DRAINED, || {
            node.scene.node.run(|| node.linux.has_changed_silently()).expect("the node")
        });
        wait_until("the last of IPVS goes", DRAINED, || {
            node.bring(&program);
            !node.has_link()
        });
        assert!(streams.iter_mut().chain(&mut again).all(|stream| asked(stream) == "pod2"));
    }
}

/// What an uninstalled node keeps of IPVS: nothing, whatever connections there are.
#[test]
fn all_of_ipvs_goes_at_once_where_nobody_stays() {
    if testkit::deferred!(Feature::Ipvs, Feature::Dummy) {
        return;
    }
    let mut node = Node::new(Family::V4);
    let at = node.scene.addresses();
    let web = service(at.vip, Protocol::Tcp, 80, 30_080, &to(&[at.pod2]));
    node.scene.desired.services.insert(NamespacedName::new("shop", "web"), web);
    let _echo = Echo::start(&node.scene.pod2, "pod2");
    node.take(ServiceBackend::Ipvs);
    let mut stream = connect(&node.scene.outside, SocketAddr::new(at.vip, 80));
    assert_eq!(asked(&mut stream), "pod2");
    let linux = &mut node.linux;
    let remove = || {
        linux.remove_ipvs().expect("removed");
        *linux.observe().expect("observe").ipvs
    };
    assert_eq!(node.scene.node.run(remove).expect("the node"), Default::default());
    assert!(!node.has_link());
}

/// A kernel that has all of it is taken, and one that lacks something is refused by name.
#[test]
fn the_backend_is_refused_where_the_kernel_lacks_it() {
    let has = |feature: Feature| feature.is_here();
    let missing = [(Feature::Ipvs, "ip_vs"), (Feature::Dummy, "dummy")];
    let missing: Vec<&str> =
        missing.into_iter().filter(|(feature, _)| !has(*feature)).map(|(_, name)| name).collect();
    match kernel::service_backend(ServiceBackend::Ipvs) {
        Ok(backend) => assert_eq!((backend, missing), (ServiceBackend::Ipvs, vec![])),
        Err(error) => {
            assert!(!missing.is_empty(), "{error}");
            assert!(missing.iter().all(|name| error.message.contains(name)), "{error}");
        }
    }
}
