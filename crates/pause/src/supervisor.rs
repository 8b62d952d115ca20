//! The pause process's loop: requests, output, ended processes. It keeps what only a parent can
//! know, the exit codes, and outlives every runtime that asks for them.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2, read};
use pause::{ContainerReport, ContainerSpec, ExecSpec, Exit, Request, Response};

use crate::clock::Time;
use crate::connection::Connection;
use crate::launch::{self, Streams};
use crate::log::{Log, Stream};
use crate::sys;

/// Connections at one time: the runtime's watch, and one for each command.
const MAX_CONNECTIONS: usize = 64;
/// Containers of one pod.
const MAX_CONTAINERS: usize = 64;
/// Bytes of output read at a time.
const READ_BYTES: usize = 16 * 1024;

/// A container that was started here, running or not.
struct Container {
    report: ContainerReport,
    spec: ContainerSpec,
    pid: i32,
    pidfd: OwnedFd,
    log: Log,
    output: Vec<(Stream, OwnedFd)>,
}

/// A command that runs in a container.
struct Command {
    connection: u64,
    kill_on_close: bool,
}

/// Everything that the process holds.
pub struct Supervisor {
    listener: UnixListener,
    signals: SignalFd,
    containers: BTreeMap<String, Container>,
    commands: BTreeMap<i32, Command>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
}

/// What a polled descriptor belongs to.
enum Source {
    Listener,
    Signals,
    Connection(u64),
    Output(String),
}

impl Supervisor {
    /// Listens on `socket`, which only root can reach.
    pub fn open(socket: &Path) -> Result<Self, String> {
        let failed =
            |error: std::io::Error| format!("cannot listen on {}: {error}", socket.display());
        match fs::remove_file(socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(socket).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().map_err(|error| format!("cannot block SIGCHLD: {error}"))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(|error| format!("cannot open a signal descriptor: {error}"))?;
        Ok(Self {
            listener,
            signals,
            containers: BTreeMap::new(),
            commands: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_connection: 0,
        })
    }

    /// Serves until the process is killed.
    pub fn run(mut self) -> ! {
        loop {
            for source in self.wait() {
                match source {
                    Source::Listener => self.accept(),
                    Source::Signals => self.reap(),
                    Source::Connection(id) => self.serve(id),
                    Source::Output(name) => self.copy_output(&name),
                }
            }
            self.forget_closed();
        }
    }

    fn wait(&self) -> Vec<Source> {
        let mut sources = vec![Source::Listener, Source::Signals];
        let mut polled = vec![
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        for (id, connection) in &self.connections {
            let mut flags = PollFlags::POLLIN;
            flags.set(PollFlags::POLLOUT, connection.wants_to_write());
            sources.push(Source::Connection(*id));
            polled.push(PollFd::new(connection.descriptor(), flags));
        }
        for (name, container) in &self.containers {
            for (_, output) in &container.output {
                sources.push(Source::Output(name.clone()));
                polled.push(PollFd::new(output.as_fd(), PollFlags::POLLIN));
            }
        }
        if poll(&mut polled, PollTimeout::NONE).is_err() {
            return Vec::new(); // Interrupted: ask again.
        }
        let ready = polled.iter().map(|entry| entry.any().unwrap_or(true));
        sources
            .into_iter()
            .zip(ready)
            .filter_map(|(source, ready)| ready.then_some(source))
            .collect()
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if self.connections.len() < MAX_CONNECTIONS && socket.set_nonblocking(true).is_ok() {
                self.connections.insert(self.next_connection, Connection::new(socket.into()));
                self.next_connection += 1;
            }
        }
    }

    fn serve(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.flush();
        for request in connection.receive() {
            let response = match request {
                Ok(Request::Start(spec)) => self.start(*spec),
                Ok(Request::Signal { container, signal }) => self.signal(&container, signal),
                Ok(Request::Exec(spec)) => self.execute(id, &spec),
                Ok(Request::Watch) => self.watch(id),
                Err(message) => Err(format!("not a request: {message}")),
            };
            let response = response.unwrap_or_else(|message| Response::Failed { message });
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.answer(&response);
            }
        }
    }

    fn start(&mut self, spec: ContainerSpec) -> Result<Response, String> {
        if let Some(present) = self.containers.get(&spec.name) {
            if present.report.exit.is_none() {
                return Err(format!("container {} is already running", spec.name));
            }
        } else if self.containers.len() >= MAX_CONTAINERS {
            return Err(format!("a pod may have {MAX_CONTAINERS} containers"));
        }
        let log = Log::open(spec.log_file.clone(), spec.log_limit_bytes)
            .map_err(|error| format!("cannot open {}: {error}", spec.log_file.display()))?;
        let null = launch::null()?;
        let pipe =
            || pipe2(OFlag::O_CLOEXEC).map_err(|error| format!("cannot make a pipe: {error}"));
        let ((output, stdout), (errors, stderr)) = (pipe()?, pipe()?);
        launch::set_nonblocking(&output)?;
        launch::set_nonblocking(&errors)?;
        let streams =
            Streams { stdin: null.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() };
        let started_at_us = Time::now().microseconds();
        let launched = launch::container(&spec, &streams)?;
        let pidfd = sys::pidfd_open(launched.pid)
            .map_err(|error| format!("cannot follow process {}: {error}", launched.pid))?;
        let report = ContainerReport {
            name: spec.name.clone(),
            id: spec.id.clone(),
            pid: launched.node_pid,
            started_at_us,
            exit: None,
        };
        let output = vec![(Stream::Stdout, output), (Stream::Stderr, errors)];
        let container = Container { report, pid: launched.pid, pidfd, log, output, spec };
        self.containers.insert(container.spec.name.clone(), container);
        Ok(Response::Started { pid: launched.node_pid })
    }

    fn signal(&mut self, name: &str, number: i32) -> Result<Response, String> {
        let container = self.running(name)?;
        let signal = Signal::try_from(number).map_err(|_| format!("no signal {number}"))?;
        match kill(Pid::from_raw(container.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(Response::Done),
            Err(error) => Err(format!("cannot signal container {name}: {error}")),
        }
    }

    fn execute(&mut self, id: u64, spec: &ExecSpec) -> Result<Response, String> {
        let streams = self.connections.get_mut(&id).and_then(Connection::take_streams);
        let [stdin, stdout, stderr] =
            streams.ok_or("a command needs exactly three descriptors beside the request")?;
        let container = self.running(&spec.container)?;
        let streams =
            Streams { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() };
        let launched = launch::command(
            &container.spec,
            container.pidfd.as_fd(),
            &spec.arguments,
            &streams,
            spec.terminal,
        )?;
        let command = Command { connection: id, kill_on_close: spec.kill_on_close };
        self.commands.insert(launched.pid, command);
        Ok(Response::Started { pid: launched.node_pid })
    }

    fn watch(&mut self, id: u64) -> Result<Response, String> {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.watches = true;
        }
        let reports = self.containers.values().map(|container| container.report.clone());
        Ok(Response::Containers(reports.collect()))
    }

    fn running(&self, name: &str) -> Result<&Container, String> {
        match self.containers.get(name) {
            Some(container) if container.report.exit.is_none() => Ok(container),
            _ => Err(format!("container {name} is not running")),
        }
    }

    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        // Signals of one kind merge: look for every ended child.
        loop {
            let (pid, code, signal) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code, 0),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid.as_raw(), 128 + signal as i32, signal as i32)
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if let Some(command) = self.commands.remove(&pid) {
                if let Some(connection) = self.connections.get_mut(&command.connection) {
                    connection.answer(&Response::Exited { code });
                }
            } else {
                self.container_ended(pid, code, signal);
            }
        }
    }

    fn container_ended(&mut self, pid: i32, code: i32, signal: i32) {
        let ended = self
            .containers
            .values()
            .find(|container| container.pid == pid && container.report.exit.is_none());
        let Some(name) = ended.map(|container| container.spec.name.clone()) else { return };
        // The kernel ended every process of its pid namespace first: all output is in the pipes.
        self.copy_output(&name);
        let Some(container) = self.containers.get_mut(&name) else { return };
        container.output.clear();
        let now = Time::now();
        container.log.finish(now);
        let finished_at_us = now.microseconds();
        let exit =
            Exit { code, signal, started_at_us: container.report.started_at_us, finished_at_us };
        container.report.exit = Some(exit);
        leave_exit(&container.spec.exit_file, &exit);
        let response = Response::Ended(container.report.clone());
        for connection in self.connections.values_mut().filter(|connection| connection.watches) {
            connection.answer(&response);
        }
    }

    fn copy_output(&mut self, name: &str) {
        let Some(container) = self.containers.get_mut(name) else { return };
        let mut buffer = [0_u8; READ_BYTES];
        let log = &mut container.log;
        container.output.retain(|(stream, output)| {
            loop {
                match read(output, &mut buffer) {
                    Ok(0) => return false,
                    Ok(count) => log.write(*stream, &buffer[..count], Time::now()),
                    Err(Errno::EINTR) => {}
                    Err(error) => return error == Errno::EAGAIN,
                }
            }
        });
    }

    fn forget_closed(&mut self) {
        self.connections.retain(|_, connection| !connection.closed);
        for (pid, command) in &mut self.commands {
            if command.kill_on_close && !self.connections.contains_key(&command.connection) {
                command.kill_on_close = false;
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
        }
    }
}

/// Renamed into place: a runtime never reads half of it. Where the disk is full the runtime still
/// learns the exit from this process.
fn leave_exit(path: &Path, exit: &Exit) {
    let temporary = path.with_extension("new");
    if let Ok(text) = serde_json::to_vec(exit)
        && fs::write(&temporary, text).is_ok()
    {
        let _ = fs::rename(&temporary, path);
    }
}
