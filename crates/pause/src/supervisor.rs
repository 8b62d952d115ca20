//! The pause process's loop: requests, output, ended processes. It keeps what only a parent can
//! know, the exit codes, and outlives every runtime that asks for them.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2, read};
use pause::{ContainerReport, ContainerSpec, ExecSpec, Exit, ProcessNamespace, Request, Response};

use crate::attach::{Attachment, Input};
use crate::clock::Time;
use crate::connection::Connection;
use crate::launch::{self, Launched, Streams};
use crate::log::{Log, Stream};
use crate::sys;

/// Connections at one time: the runtime's watch, and one for each command or attached client.
const MAX_CONNECTIONS: usize = 64;
/// Containers of one pod.
const MAX_CONTAINERS: usize = 64;
/// Bytes of output read at a time.
const READ_BYTES: usize = 16 * 1024;
/// How often the rest of a container's processes is looked for. Each look ends all that it finds.
const END_ROUNDS: usize = 10;
/// Reads of one container's output before others have their turn.
const READS: usize = 16;

/// A container that was started here, running or not.
struct Container {
    report: ContainerReport,
    spec: ContainerSpec,
    pid: i32,
    pidfd: OwnedFd,
    log: Log,
    streams: Held,
}

/// Our side of a container's streams.
#[derive(Default)]
struct Held {
    input: Input,
    output: Vec<(Stream, OwnedFd)>,
    /// Controlling side and terminal, where the container has one.
    terminal: Option<[OwnedFd; 2]>,
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
    /// By connection.
    attachments: BTreeMap<u64, Attachment>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
}

/// What a polled descriptor belongs to.
enum Source {
    Listener,
    Signals,
    Connection(u64),
    /// A container that prints.
    Output(String),
    /// A container that takes more input.
    Input(String),
    /// A client that types.
    Typed(u64),
    /// A client that takes more output.
    Taken(u64),
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
            attachments: BTreeMap::new(),
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
                    Source::Output(name) => self.copy_output(&name, false),
                    Source::Input(name) => {
                        if let Some(container) = self.containers.get_mut(&name) {
                            container.streams.input.flush();
                        }
                    }
                    Source::Typed(id) => self.copy_input(id),
                    Source::Taken(id) => {
                        if let Some(client) = self.attachments.get_mut(&id) {
                            client.flush();
                        }
                    }
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
        self.poll_streams(&mut sources, &mut polled);
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

    fn poll_streams<'a>(&'a self, sources: &mut Vec<Source>, polled: &mut Vec<PollFd<'a>>) {
        let mut add = |source, descriptor, flags| {
            sources.push(source);
            polled.push(PollFd::new(descriptor, flags));
        };
        for (name, container) in &self.containers {
            for (stream, output) in &container.streams.output {
                if !self.is_held_up(name, *stream) {
                    add(Source::Output(name.clone()), output.as_fd(), PollFlags::POLLIN);
                }
            }
            if let Some(input) = container.streams.input.waiting() {
                add(Source::Input(name.clone()), input, PollFlags::POLLOUT);
            }
        }
        for (id, client) in &self.attachments {
            let Some(container) = self.containers.get(&client.container) else { continue };
            let (typed, taken) = client.polled(&container.streams.input);
            if let Some(typed) = typed {
                add(Source::Typed(*id), typed, PollFlags::POLLIN);
            }
            for outlet in taken {
                add(Source::Taken(*id), outlet, PollFlags::POLLOUT);
            }
        }
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
                Ok(Request::Attach { container }) => self.attach(id, container),
                Ok(Request::EndInput) => self.end_input(id),
                Ok(Request::Resize { columns, rows }) => self.resize(id, columns, rows),
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
        let started_at_us = Time::now().microseconds();
        let target = match &spec.process_namespace {
            ProcessNamespace::Of(name) => Some(self.running(name)?.pidfd.as_fd()),
            ProcessNamespace::Own | ProcessNamespace::Pod => None,
        };
        let start = if spec.terminal { on_terminal } else { on_pipes };
        let (launched, streams) = start(&spec, target)?;
        let pidfd = sys::pidfd_open(launched.pid)
            .map_err(|error| format!("cannot follow process {}: {error}", launched.pid))?;
        let report = ContainerReport {
            name: spec.name.clone(),
            id: spec.id.clone(),
            pid: launched.node_pid,
            started_at_us,
            exit: None,
        };
        let container = Container { report, pid: launched.pid, pidfd, log, streams, spec };
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

    fn attach(&mut self, id: u64, name: String) -> Result<Response, String> {
        let streams = self.connections.get_mut(&id).and_then(Connection::take_streams);
        let streams = streams.ok_or("a client needs exactly three descriptors to attach")?;
        let container = self.running(&name)?;
        let mut client = Attachment::new(name, streams)?;
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !container.streams.output.iter().any(|(open, _)| *open == stream) {
                client.end(stream);
            }
        }
        self.attachments.insert(id, client);
        Ok(Response::Done)
    }

    fn end_input(&mut self, id: u64) -> Result<Response, String> {
        let client = self.attachments.get_mut(&id).ok_or(NOT_ATTACHED)?;
        if client.end_input() {
            let name = client.container.clone();
            self.input_ended(&name);
        }
        Ok(Response::Done)
    }

    /// A client's input has ended, as it should. A terminal stays open for the next one.
    fn input_ended(&mut self, name: &str) {
        if let Some(container) = self.containers.get_mut(name)
            && container.spec.stdin_once
            && !container.spec.terminal
        {
            container.streams.input.end();
        }
    }

    fn resize(&mut self, id: u64, columns: u16, rows: u16) -> Result<Response, String> {
        let name = &self.attachments.get(&id).ok_or(NOT_ATTACHED)?.container;
        let container = self.running(name)?;
        let terminal = container.streams.terminal.as_ref();
        let [controller, _] =
            terminal.ok_or_else(|| format!("container {name} has no terminal"))?;
        pause::terminal::resize(controller.as_fd(), columns, rows)
            .map_err(|error| format!("cannot resize the terminal of container {name}: {error}"))?;
        Ok(Response::Done)
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
        if let Some(container) = self.containers.get(&name)
            && container.spec.process_namespace != ProcessNamespace::Own
        {
            end_all(&container.spec.cgroups);
        }
        // Every process of it has ended: all output is in the pipes, which hold a bounded part of
        // it, as the clients then do.
        self.copy_output(&name, true);
        let Some(container) = self.containers.get_mut(&name) else { return };
        container.streams = Held::default();
        for (id, client) in self.attachments.iter_mut().filter(|(_, one)| one.container == name) {
            client.finish();
            if let Some(connection) = self.connections.get_mut(id) {
                connection.answer(&Response::Exited { code });
            }
        }
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

    /// Output of a container, to its end where it is the `last`. Before that, a client that is
    /// behind holds it up.
    fn copy_output(&mut self, name: &str, last: bool) {
        let Some(container) = self.containers.get_mut(name) else { return };
        let mut clients: Vec<&mut Attachment> =
            self.attachments.values_mut().filter(|client| client.container == name).collect();
        let mut buffer = [0_u8; READ_BYTES];
        let log = &mut container.log;
        container.streams.output.retain(|(stream, output)| {
            for _ in 0..if last { usize::MAX } else { READS } {
                if !last && clients.iter().any(|client| client.is_behind(*stream)) {
                    return true;
                }
                match read(output, &mut buffer) {
                    Ok(count @ 1..) => {
                        log.write(*stream, &buffer[..count], Time::now());
                        clients
                            .iter_mut()
                            .for_each(|client| client.give(*stream, &buffer[..count]));
                    }
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => return true,
                    Ok(0) | Err(_) => {
                        clients.iter_mut().for_each(|client| client.end(*stream));
                        return false;
                    }
                }
            }
            true
        });
    }

    fn is_held_up(&self, name: &str, stream: Stream) -> bool {
        let mut clients = self.attachments.values().filter(|client| client.container == name);
        clients.any(|client| client.is_behind(stream))
    }

    fn copy_input(&mut self, id: u64) {
        let Some(client) = self.attachments.get_mut(&id) else { return };
        let Some(container) = self.containers.get_mut(&client.container) else { return };
        if client.type_into(&mut container.streams.input) {
            let name = client.container.clone();
            self.input_ended(&name);
        }
    }

    fn forget_closed(&mut self) {
        self.connections.retain(|_, connection| !connection.closed);
        let is_gone = |id: &u64| !self.connections.contains_key(id);
        let gone: Vec<u64> = self.attachments.keys().copied().filter(is_gone).collect();
        for id in gone {
            if let Some(mut client) = self.attachments.remove(&id)
                && let Some(container) = self.containers.get_mut(&client.container)
                && client.type_rest(&mut container.streams.input)
            {
                self.input_ended(&client.container);
            }
        }
        for (pid, command) in &mut self.commands {
            if command.kill_on_close && !self.connections.contains_key(&command.connection) {
                command.kill_on_close = false;
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
        }
    }
}

/// What the runtime is told when it asks for what only an attached client can.
const NOT_ATTACHED: &str = "no client is attached on this connection";

/// Starts a container whose streams are pipes.
fn on_pipes(
    spec: &ContainerSpec,
    target: Option<BorrowedFd<'_>>,
) -> Result<(Launched, Held), String> {
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|error| format!("cannot make a pipe: {error}"));
    let ((output, stdout), (errors, stderr)) = (pipe()?, pipe()?);
    launch::set_nonblocking(&output)?;
    launch::set_nonblocking(&errors)?;
    let (stdin, input) = if spec.stdin {
        let (stdin, input) = pipe()?;
        (stdin, Input::new(input)?)
    } else {
        (launch::null()?, Input::default())
    };
    let streams = Streams { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() };
    let launched = launch::container(spec, target, &streams)?;
    let output = vec![(Stream::Stdout, output), (Stream::Stderr, errors)];
    Ok((launched, Held { input, output, terminal: None }))
}

/// Starts a container whose streams are a terminal.
fn on_terminal(
    spec: &ContainerSpec,
    target: Option<BorrowedFd<'_>>,
) -> Result<(Launched, Held), String> {
    let (launched, terminal) = launch::container_on_terminal(spec, target)?;
    let copy = || {
        let copied = terminal[0].try_clone();
        copied.map_err(|error| format!("cannot copy a terminal's descriptor: {error}"))
    };
    let output = copy()?;
    launch::set_nonblocking(&output)?;
    let input = if spec.stdin { Input::new(copy()?)? } else { Input::default() };
    let output = vec![(Stream::Stdout, output)];
    Ok((launched, Held { input, output, terminal: Some(terminal) }))
}

/// Ends what is left of a container. In a pid namespace of its own the kernel does that, in a shared
/// one its control group tells which processes are its.
fn end_all(cgroups: &[PathBuf]) {
    for _ in 0..END_ROUNDS {
        let texts = cgroups.iter().filter_map(|path| fs::read_to_string(path).ok());
        let pids: Vec<i32> = texts
            .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
            // 0 is who is not in this pid namespace.
            .filter(|pid| *pid > 1)
            .collect();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
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
