//! Without `CAP_SYS_ADMIN`, as the agent in a pod: what needs it fails, and says so. Needs root.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::Command;

use netlink::{Netlink, Netns};

/// Set where the test finds itself again without the capability;
/// the value names a namespace that it may not enter.
const WITHOUT: &str = "FLATNET_TEST_WITHOUT_SYS_ADMIN";

#[test]
fn without_the_right_other_namespaces_are_refused_and_the_own_one_works() {
    let Some(other) = std::env::var_os(WITHOUT) else {
        let other = Netns::create().expect("a namespace");
        let path = format!("/proc/{}/fd/{}", std::process::id(), other.as_fd().as_raw_fd());
        let status = Command::new("setpriv")
            .args(["--bounding-set=-sys_admin", "--"])
            .arg(std::env::current_exe().expect("the own program"))
            .env(WITHOUT, path)
            .status();
        assert!(status.expect("setpriv runs").success());
        return;
    };
    let other = Netns::open(Path::new(&other)).expect("it can be seen");
    let entered = other.run(|| ());
    let errno = |result: Result<(), netlink::Error>| result.expect_err("refused").errno;
    assert_eq!(errno(entered), libc::EPERM);
    assert_eq!(errno(Netns::create().map(drop)), libc::EPERM);
    let other = std::env::temp_dir().join(format!("flatnet-rights-{}", std::process::id()));
    assert_eq!(errno(Netns::create_at(&other).map(drop)), libc::EPERM);
    assert!(!other.exists(), "nothing is left behind");
    let own = Netns::current().expect("the own namespace");
    let link = own.run(|| Netlink::open()?.require_link("lo")).expect("no right is needed");
    assert_eq!(link.expect("it").name, "lo");
}
