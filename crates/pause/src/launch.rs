//! Starting a process: the child's way from `fork` to `execve`.
//!
//! The child reports over a pipe: first its process id as the node sees it, then, if something
//! fails, why. An `execve` that succeeds closes the pipe.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use nix::unistd::{self, Gid, Uid};
use pause::{ContainerSpec, ProcessNamespace};

use crate::{connection, root, sys};

/// Longest report of a child.
const REPORT_LIMIT_BYTES: u64 = 8 * 1024;

/// A process that has reached `execve`.
pub struct Launched {
    /// Its process id here.
    pub pid: i32,
    /// Its process id as the node sees it.
    pub node_pid: i32,
}

/// Standard input, output and error of the new process.
pub struct Streams<'a> {
    /// Standard input.
    pub stdin: BorrowedFd<'a>,
    /// Standard output.
    pub stdout: BorrowedFd<'a>,
    /// Standard error.
    pub stderr: BorrowedFd<'a>,
}

/// Starts a container's first process in mount and cgroup namespaces of its own, and in the pid
/// namespace that it wants: its own, the pod's, or that of the process that `target` refers to.
pub fn container(
    spec: &ContainerSpec,
    target: Option<BorrowedFd<'_>>,
    streams: &Streams<'_>,
) -> Result<Launched, String> {
    launch_container(spec, target, |report| {
        enter_container(spec, report)?;
        become_program(spec, &spec.arguments, streams, false)
    })
}

/// Starts a container's first process likewise, on a terminal of the container's own: a program
/// finds its name there. Returns the terminal's controlling side, and the terminal itself: while
/// this process holds it, the controlling side never hangs up before the container ends.
pub fn container_on_terminal(
    spec: &ContainerSpec,
    target: Option<BorrowedFd<'_>>,
) -> Result<(Launched, [OwnedFd; 2]), String> {
    let pair = || UnixStream::pair().map_err(|error| format!("cannot make sockets: {error}"));
    let (ours, theirs) = pair()?;
    let launched = launch_container(spec, target, |report| {
        enter_container(spec, report)?;
        let failed = |error: std::io::Error| format!("cannot open a terminal: {error}");
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let controller = open("/dev/pts/ptmx", flags, Mode::empty())
            .map_err(|error| format!("cannot open /dev/pts/ptmx: {error}"))?;
        let terminal = pause::terminal::peer(controller.as_fd()).map_err(failed)?;
        unistd::fchown(&terminal, Some(Uid::from_raw(spec.user)), None)
            .map_err(|error| failed(error.into()))?;
        connection::send_descriptors(theirs.as_fd(), [controller.as_fd(), terminal.as_fd()])
            .map_err(|error| failed(error.into()))?;
        let stream = terminal.as_fd();
        let streams = Streams { stdin: stream, stdout: stream, stderr: stream };
        become_program(spec, &spec.arguments, &streams, true)
    })?;
    let received = connection::receive(ours.as_fd(), &mut [0; 1]).map(|(_, received)| received);
    let terminal = received.unwrap_or_default().try_into();
    Ok((launched, terminal.map_err(|_| "the new process gave no terminal".to_owned())?))
}

/// Starts a command in the namespaces of the running container that `pidfd` refers to.
pub fn command(
    spec: &ContainerSpec,
    pidfd: BorrowedFd<'_>,
    arguments: &[String],
    streams: &Streams<'_>,
    terminal: bool,
) -> Result<Launched, String> {
    let gone = |error: nix::Error| match error {
        nix::Error::ESRCH => format!("container {} is not running", spec.name),
        other => format!("cannot enter container {}: {other}", spec.name),
    };
    among(pidfd, || {
        launch(CloneFlags::empty(), |report| {
            prepare(spec, report)?;
            nix::sched::setns(pidfd, CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)
                .map_err(gone)?;
            become_program(spec, arguments, streams, terminal)
        })
    })
}

fn launch_container(
    spec: &ContainerSpec,
    target: Option<BorrowedFd<'_>>,
    child: impl FnOnce(&mut fs::File) -> Result<Infallible, String>,
) -> Result<Launched, String> {
    let own = CloneFlags::CLONE_NEWNS;
    match (&spec.process_namespace, target) {
        (ProcessNamespace::Own, _) => launch(own | CloneFlags::CLONE_NEWPID, child),
        (ProcessNamespace::Pod, _) => launch(own, child),
        (ProcessNamespace::Of(_), Some(target)) => among(target, || launch(own, child)),
        (ProcessNamespace::Of(name), None) => Err(format!("container {name} is not running")),
    }
}

/// Starts a process among those of the pid namespace that `pidfd` is in.
fn among(
    pidfd: BorrowedFd<'_>,
    start: impl FnOnce() -> Result<Launched, String>,
) -> Result<Launched, String> {
    // Entering a pid namespace holds for children only. This process's own is restored below, or
    // the next container would be born in this one.
    let own = sys::pidfd_open(unistd::getpid().as_raw())
        .map_err(|error| format!("cannot open this process: {error}"))?;
    nix::sched::setns(pidfd, CloneFlags::CLONE_NEWPID).map_err(|error| match error {
        nix::Error::ESRCH => "the container is not running".to_owned(),
        other => format!("cannot enter the container's pid namespace: {other}"),
    })?;
    let launched = start();
    nix::sched::setns(own.as_fd(), CloneFlags::CLONE_NEWPID)
        .map_err(|error| format!("cannot return to the pod's pid namespace: {error}"))?;
    launched
}

fn launch(
    namespaces: CloneFlags,
    child: impl FnOnce(&mut fs::File) -> Result<Infallible, String>,
) -> Result<Launched, String> {
    let (reader, writer) =
        unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| format!("cannot make a pipe: {error}"))?;
    let pid = sys::fork_into(namespaces).map_err(|error| format!("cannot fork: {error}"))?;
    if pid == 0 {
        drop(reader);
        let mut report = fs::File::from(writer);
        let Err(message) = child(&mut report);
        let _ = report.write_all(message.as_bytes());
        sys::exit_now(127);
    }
    drop(writer);
    let report = read_report(reader);
    let (node_pid, message) = report.split_once('\n').unwrap_or(("", &report));
    if message.is_empty()
        && let Ok(node_pid) = node_pid.parse()
    {
        return Ok(Launched { pid, node_pid });
    }
    let _ = nix::sys::wait::waitpid(unistd::Pid::from_raw(pid), None);
    Err(if message.is_empty() {
        "the new process ended before it could run the command".into()
    } else {
        message.to_owned()
    })
}

fn read_report(reader: OwnedFd) -> String {
    let mut report = Vec::new();
    // A report cut short by an error is reported as what it is: too short.
    let _ = fs::File::from(reader).take(REPORT_LIMIT_BYTES).read_to_end(&mut report);
    String::from_utf8_lossy(&report).into_owned()
}

/// What must happen while the node's /proc and cgroups are still in sight.
fn prepare(spec: &ContainerSpec, report: &mut fs::File) -> Result<(), String> {
    // The node's procfs shows the node's view of this process.
    let own = fs::read_link("/proc/self").map_err(|error| format!("cannot read /proc: {error}"))?;
    writeln!(report, "{}", own.display()).map_err(|error| format!("cannot report: {error}"))?;
    sys::default_signals();
    nix::sys::signal::SigSet::empty()
        .thread_set_mask()
        .map_err(|error| format!("cannot unblock signals: {error}"))?;
    unistd::setsid().map_err(|error| format!("cannot start a session: {error}"))?;
    for path in &spec.cgroups {
        fs::write(path, "0")
            .map_err(|error| format!("cannot enter the cgroup {}: {error}", path.display()))?;
    }
    // Lowering it needs CAP_SYS_RESOURCE, which not every machine leaves to root.
    let _ = fs::write("/proc/self/oom_score_adj", spec.oom_score_adjust.to_string());
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    Ok(())
}

fn enter_container(spec: &ContainerSpec, report: &mut fs::File) -> Result<(), String> {
    prepare(spec, report)?;
    nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP)
        .map_err(|error| format!("cannot make a cgroup namespace: {error}"))?;
    root::enter(spec)?;
    make_working_directory(&spec.working_directory)
}

fn make_working_directory(path: &str) -> Result<(), String> {
    fs::create_dir_all(path)
        .map_err(|error| format!("cannot make the working directory {path}: {error}"))
}

fn become_program(
    spec: &ContainerSpec,
    arguments: &[String],
    streams: &Streams<'_>,
    terminal: bool,
) -> Result<Infallible, String> {
    let failed = |what: &'static str| move |error: nix::Error| format!("cannot {what}: {error}");
    unistd::chdir(spec.working_directory.as_str())
        .map_err(failed("enter the working directory"))?;
    connect(streams).map_err(failed("connect the standard streams"))?;
    sys::close_all_on_exec();
    if terminal {
        sys::control_terminal().map_err(|error| format!("cannot take the terminal: {error}"))?;
    }
    let name = arguments.first().ok_or("no command is given")?;
    drop_privileges(spec)?;
    let path = find_program(name, &spec.environment, &spec.working_directory)?;
    let texts = |texts: &[String]| -> Result<Vec<CString>, String> {
        let convert = |text: &String| CString::new(text.as_str());
        texts.iter().map(convert).collect::<Result<_, _>>().map_err(|_| {
            String::from("the command or its environment holds a NUL byte, which Linux refuses")
        })
    };
    let program = CString::new(path.as_str()).map_err(|error| error.to_string())?;
    let error = sys::execute(&program, &texts(arguments)?, &texts(&spec.environment)?);
    Err(match error.raw_os_error() {
        Some(libc::ENOENT) => format!("exec: \"{name}\": no such file or directory"),
        Some(libc::EACCES) => format!("exec: \"{name}\": permission denied"),
        Some(libc::ENOEXEC) => format!("exec: \"{name}\": exec format error"),
        _ => format!("exec: \"{name}\": {error}"),
    })
}

/// Copies the streams clear of descriptors 0 to 2 first: one of them may be one of those.
fn connect(streams: &Streams<'_>) -> nix::Result<()> {
    let copy = |descriptor: BorrowedFd<'_>| {
        nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(3))
    };
    let copies = [copy(streams.stdin)?, copy(streams.stdout)?, copy(streams.stderr)?];
    let borrowed = copies.map(sys::received);
    unistd::dup2_stdin(&borrowed[0])?;
    unistd::dup2_stdout(&borrowed[1])?;
    unistd::dup2_stderr(&borrowed[2])?;
    Ok(())
}

fn drop_privileges(spec: &ContainerSpec) -> Result<(), String> {
    let failed = |what: &'static str| move |error: nix::Error| format!("cannot {what}: {error}");
    // Without no_new_privs only an administrator may set a filter, which this process is no more
    // below.
    if !spec.no_new_privileges {
        filter_system_calls(spec)?;
    }
    sys::limit_bounding_set(spec.capabilities)
        .map_err(|error| format!("cannot limit capabilities: {error}"))?;
    let groups: Vec<Gid> = spec.groups.iter().copied().map(Gid::from_raw).collect();
    unistd::setgroups(&groups).map_err(failed("set supplementary groups"))?;
    unistd::setgid(Gid::from_raw(spec.group)).map_err(failed("set the group"))?;
    unistd::setuid(Uid::from_raw(spec.user)).map_err(failed("set the user"))?;
    // A user other than root has none from here on: setuid took them.
    let kept = if spec.user == 0 { spec.capabilities } else { 0 };
    sys::keep_capabilities(kept).map_err(|error| format!("cannot drop capabilities: {error}"))?;
    if spec.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().map_err(failed("forbid new privileges"))?;
        filter_system_calls(spec)?;
    }
    Ok(())
}

fn filter_system_calls(spec: &ContainerSpec) -> Result<(), String> {
    if spec.system_calls.is_empty() {
        return Ok(());
    }
    sys::filter_system_calls(&spec.system_calls)
        .map_err(|error| format!("cannot filter system calls (seccomp): {error}"))
}

fn find_program(name: &str, environment: &[String], directory: &str) -> Result<String, String> {
    if name.contains('/') {
        return Ok(name.to_owned());
    }
    let path = environment.iter().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or_default();
    path.split(':')
        .map(|place| if place.is_empty() { directory } else { place })
        .map(|place| format!("{place}/{name}"))
        .find(|candidate| is_executable(Path::new(candidate)))
        .ok_or_else(|| format!("exec: \"{name}\": executable file not found in $PATH"))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && unistd::access(path, unistd::AccessFlags::X_OK).is_ok()
}

/// /dev/null, for containers without an input.
pub fn null() -> Result<OwnedFd, String> {
    open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|error| format!("cannot open /dev/null: {error}"))
}

/// Makes a descriptor of ours answer at once when there is nothing to read.
pub fn set_nonblocking(descriptor: &OwnedFd) -> Result<(), String> {
    let fd = descriptor.as_fd();
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map(drop)
        .map_err(|error| format!("cannot set descriptor {}: {error}", descriptor.as_raw_fd()))
}
