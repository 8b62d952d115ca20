//! Restarts, other sizes, and maps that are full.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ebpf_abi::services::{Slot, SlotKey};
use kernel::bpf::services::{maps_directory, missing};
use nix::mount::{MntFlags, umount2};
use render::ebpf::{Change, EbpfOp, Sizes};

use crate::world::{
    From, PORT, Server, World, ask, cluster_ip, connect, fill, heard, open, to, udp_socket,
};
use crate::{ROUNDS, alone};

#[test]
fn a_restart_with_nothing_changed_writes_nothing() {
    let (_turn, cgroup) = alone();
    assert_eq!(missing(), Vec::<String>::new());
    let mut world = World::new(cgroup.own.clone());
    let (frontend, endpoints) = (world.frontend(0), world.endpoints(0));
    assert!(!world.set(cluster_ip(frontend, &to(&endpoints))).is_empty());
    let servers = world.listen(0, PORT);
    let socket = udp_socket(world.namespace(From::Pod), frontend);
    let asked = ask(&socket, frontend, &servers);
    assert_eq!(world.driver.attached(&cgroup.own).expect("the programs").len(), 8);

    // As after `kill -9`: nothing of it was in the process.
    let sizes = Sizes::default();
    drop(std::mem::replace(&mut world.driver, open(&world.node, sizes)));
    connect(world.namespace(From::Pod), frontend, &servers);
    assert_eq!(ask(&socket, frontend, &servers), asked, "flows are remembered");
    let ops = fill(&mut world.driver, &world.desired, &world.config, &world.facts);
    assert_eq!(ops, []);
    assert_eq!(world.driver.attach(&cgroup.own).expect("attached"), Vec::<String>::new());

    // Somebody detached one: it comes back, the others stay.
    let pins = world.node.file_system.join("flatnet/service-links");
    let pin = std::fs::read_dir(&pins).expect("the pins").flatten().next().expect("a pin").path();
    std::fs::remove_file(&pin).expect("removed");
    assert_eq!(world.driver.attach(&cgroup.own).expect("attached").len(), 1);

    // Somebody detached one by force: its pin attaches nothing any more.
    force_detach(&pins.join(pin.file_name().expect("a name")));
    assert_eq!(world.driver.attached(&cgroup.own).expect("the programs").len(), 7);
    assert_eq!(world.driver.attach(&cgroup.own).expect("attached").len(), 1);
    connect(world.namespace(From::Pod), frontend, &servers);
}

/// while another backend takes over, nothing new is led, and answers to what was led before
/// still come from the Service; in the end nothing stays.
#[test]
fn answers_under_way_come_from_the_service_when_another_backend_takes_over() {
    let (_turn, cgroup) = alone();
    let mut world = World::new(cgroup.own.clone());
    for family in [0, 1] {
        let (frontend, endpoints) = (world.frontend(family), world.endpoints(family));
        world.set(cluster_ip(frontend, &to(&endpoints)));
        let servers = world.listen(family, PORT);
        let untouched = [Server::new(world.namespace(From::Pod), frontend)];
        let socket = udp_socket(world.namespace(From::Pod), frontend);
        socket.send_to(b"question", frontend).expect("sent");
        assert!(world.driver.is_leading());
        world.driver.detach().expect("detached");
        assert!(!world.driver.is_leading());
        let (server, from) = heard(&socket, &servers);
        assert!(endpoints.contains(&server));
        assert_eq!(from, frontend, "in the words of who asked");
        assert_eq!(ask(&socket, frontend, &untouched), (frontend, frontend), "nothing new is led");
        connect(world.namespace(From::Pod), frontend, &untouched);
    }
    let World { node, driver, .. } = world;
    node.run(|| driver.remove()).expect("removed");
    assert!(!node.file_system.join("flatnet").exists(), "nothing stays");
}

/// the file system of all pins is unmounted, but somebody else has it still. What was attached
/// lives on, and nobody must be led by what it knew.
#[test]
fn programs_whose_pins_are_out_of_reach_lead_nobody() {
    let (_turn, cgroup) = alone();
    let mut world = World::new(cgroup.own.clone());
    let (frontend, endpoints) = (world.frontend(0), world.endpoints(0));
    let mut now = endpoints;
    let before: BTreeSet<SocketAddr> = now.pop_first().into_iter().collect();
    world.set(cluster_ip(frontend, &to(&before)));
    let servers = world.listen(0, PORT);
    let _holder = std::fs::File::open(&world.node.file_system).expect("the file system");
    umount2(&world.node.file_system, MntFlags::MNT_DETACH).expect("unmounted");
    connect(world.namespace(From::Pod), frontend, &servers);
    world.driver = open(&world.node, Sizes::default());
    world.set(cluster_ip(frontend, &to(&now)));
    for _ in 0..ROUNDS {
        let (server, _) = connect(world.namespace(From::Pod), frontend, &servers);
        assert!(now.contains(&server), "{server} was its endpoint before");
    }
    assert_eq!(world.driver.attach(&cgroup.own).expect("attached"), Vec::<String>::new());
}

/// As `bpftool link detach` does.
#[allow(unsafe_code)] // bpf(2)
fn force_detach(pin: &Path) {
    const BPF_OBJ_GET: libc::c_long = 7;
    const BPF_LINK_DETACH: libc::c_long = 34;
    let path = CString::new(pin.as_os_str().as_bytes()).expect("a path");
    let bpf = |command: libc::c_long, attributes: [u64; 2]| {
        // SAFETY: both commands read the two numbers at most; the path outlives the call.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, command, &raw const attributes, size_of_val(&attributes))
        };
        assert!(result >= 0, "{}", std::io::Error::last_os_error());
        u64::try_from(result).expect("a descriptor")
    };
    let link = bpf(BPF_OBJ_GET, [path.as_ptr() as u64, 0]);
    bpf(BPF_LINK_DETACH, [link, 0]);
    // SAFETY: the kernel made the descriptor for us.
    drop(unsafe { OwnedFd::from_raw_fd(i32::try_from(link).expect("a descriptor")) });
}

#[test]
fn other_sizes_take_over_while_connections_are_made() {
    let (_turn, cgroup) = alone();
    let mut world = World::new(cgroup.own.clone());
    let (frontend, endpoints) = (world.frontend(0), world.endpoints(0));
    world.set(cluster_ip(frontend, &to(&endpoints)));
    let servers = world.listen(0, PORT);
    let old = maps_directory(&world.node.file_system, &Sizes::default());
    assert!(old.exists());
    let meet = |world: &World| -> BTreeSet<SocketAddr> {
        (0..ROUNDS).map(|_| connect(world.namespace(From::Pod), frontend, &servers).0).collect()
    };

    let sizes = Sizes { services: 100, slots: 200, clients: 300, ..Sizes::default() };
    world.driver = open(&world.node, sizes);
    assert_eq!(meet(&world), endpoints, "empty maps are nobody's yet");
    // Only two endpoints, so that one sees which maps the programs read.
    let fewer: BTreeSet<SocketAddr> = endpoints.iter().copied().take(2).collect();
    let plan = cluster_ip(frontend, &to(&fewer));
    world.desired.services.values_mut().for_each(|one| one.frontends = plan.clone().into());
    fill(&mut world.driver, &world.desired, &world.config, &world.facts);
    assert_eq!(meet(&world), endpoints, "filled maps are nobody's yet");
    assert_eq!(world.driver.attach(&cgroup.own).expect("attached").len(), 8);
    assert_eq!(meet(&world), fewer);
    world.driver.remove_others().expect("removed");
    assert!(!old.exists());
    assert_eq!(meet(&world), fewer);
}

#[test]
fn a_full_map_is_named_with_what_to_do() {
    let (_turn, cgroup) = alone();
    let mut world = World::new(cgroup.own.clone());
    world.driver =
        open(&world.node, Sizes { services: 8, slots: 8, clients: 64, ..Sizes::default() });
    let slots = (0..64).map(|slot| (SlotKey { id: 1, slot }, Slot::default())).collect();
    let op = EbpfOp::Slots(Change::Put(slots));
    let error = world.driver.apply(&op).expect_err("too many");
    assert_eq!(error.errno, libc::E2BIG);
    assert!(error.message.contains("slots is full with 8 entries"), "{}", error.message);
    let mut believed = world.driver.observe().expect("the maps");
    assert_eq!(believed.slots.len(), 8, "the kernel stops in the middle");
    assert_eq!(believed.apply(&op).expect_err("the fake refuses too").errno, libc::E2BIG);
}
