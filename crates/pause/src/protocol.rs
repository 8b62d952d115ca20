//! What the node's runtime and a pod's pause process say to each other: one JSON document a line,
//! over a unix socket that only root can reach.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Largest request and answer. A container's environment is the bulk of a request.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// What a sandbox is made from, read from standard input at start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Where to listen for requests.
    pub socket: PathBuf,
    /// The pod's hostname.
    pub hostname: String,
    /// The pod's network namespace; absent for pods of the node's own network.
    pub network_namespace: Option<PathBuf>,
    /// Whether the pod is among the node's processes, without a pid namespace of its own.
    #[serde(default)]
    pub node_processes: bool,
    /// A directory on which the memory is mounted that the pod's containers share, in the pod's
    /// mount namespace only; absent for pods in the node's ipc namespace.
    #[serde(default)]
    pub shared_memory: Option<PathBuf>,
    /// `cgroup.procs` files to enter.
    pub cgroups: Vec<PathBuf>,
    /// Kernel parameters of the pod's own namespaces: places below /proc/sys, and values.
    #[serde(default)]
    pub sysctls: Vec<(String, String)>,
}

/// A request of the runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Start a container. Answered by `Started` or `Failed`.
    Start(Box<ContainerSpec>),
    /// Send a signal to a container's first process. Answered by `Done` or `Failed`.
    Signal {
        /// The container.
        container: String,
        /// The signal's number.
        signal: i32,
    },
    /// Run a command in a running container. Three descriptors (stdin, stdout, stderr) travel
    /// with the request. Answered by `Started` or `Failed`, later by `Exited`.
    Exec(ExecSpec),
    /// Join a running container: three descriptors travel with the request, from which its input
    /// comes and to which its output and errors go as well. Answered by `Done` or `Failed`, later
    /// by `Exited`. Until what was printed is taken, the container's output is held up.
    Attach {
        /// The container.
        container: String,
    },
    /// The input of the client that is attached on this connection ends, which ends the container's
    /// where [`ContainerSpec::stdin_once`] says so. Answered by `Done` or `Failed`.
    EndInput,
    /// Tell the programs of the container that is attached on this connection the size of their
    /// terminal. Answered by `Done` or `Failed`.
    Resize {
        /// Its width.
        columns: u16,
        /// Its height.
        rows: u16,
    },
    /// Answered by `Containers`; from then on this connection is told of every exit.
    Watch,
}

/// An answer or, on a connection that watches, a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// A container or command runs.
    Started {
        /// Its process id as the node sees it.
        pid: i32,
    },
    /// The request came to nothing.
    Failed {
        /// For people.
        message: String,
    },
    /// The request is carried out.
    Done,
    /// All containers ever started in this sandbox, the newest attempt of each.
    Containers(Vec<ContainerReport>),
    /// A container ended.
    Ended(ContainerReport),
    /// A command ended, or the container that is attached on this connection.
    Exited {
        /// Its exit code; 128 + n for signal n.
        code: i32,
    },
}

/// The state of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerReport {
    /// The container's name in the pod.
    pub name: String,
    /// The identity given at start.
    pub id: String,
    /// Process id of its first process as the node sees it.
    pub pid: i32,
    /// When it started, in microseconds since the epoch.
    pub started_at_us: i64,
    /// How it ended; absent while it runs.
    pub exit: Option<Exit>,
}

/// How a container ended. The same document is left on disk as [`ContainerSpec::exit_file`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 + n for signal n.
    pub code: i32,
    /// The signal that ended it, or 0.
    pub signal: i32,
    /// When it started, in microseconds since the epoch.
    pub started_at_us: i64,
    /// When it ended, in microseconds since the epoch.
    pub finished_at_us: i64,
}

/// Everything that a container is made from: the runtime has resolved all references.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The container's name in the pod.
    pub name: String,
    /// A new identity for each start.
    pub id: String,
    /// An empty directory on which the root file system is mounted, in the container's own mount
    /// namespace only.
    pub root: PathBuf,
    /// Overlays that make the root; the first has the target `/`.
    pub overlays: Vec<Overlay>,
    /// What is at /dev/shm: the pod's shared memory, or the node's.
    pub shared_memory: PathBuf,
    /// What is bound into the root, parents before children.
    pub binds: Vec<Bind>,
    /// Whether the root is read-only once everything is in place.
    pub read_only_root: bool,
    /// The command and its arguments, never empty.
    pub arguments: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Working directory, made where it is missing.
    pub working_directory: String,
    /// User id.
    pub user: u32,
    /// Group id.
    pub group: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// The capabilities kept, as the kernel's bit mask.
    pub capabilities: u64,
    /// Whether no program may gain rights that it was not started with (`no_new_privs`).
    pub no_new_privileges: bool,
    /// Which system calls are allowed: instructions of the kernel's packet filter, each in the 8
    /// bytes of its `sock_filter` as a big-endian number. Empty for all.
    pub system_calls: Vec<u64>,
    /// Whether the container has the node's devices, a writable /sys and an uncut /proc.
    pub privileged: bool,
    /// Whether /proc is uncut in any case.
    pub whole_proc: bool,
    /// `cgroup.procs` files to enter.
    pub cgroups: Vec<PathBuf>,
    /// Tried, and passed over where the machine does not allow it.
    pub oom_score_adjust: i32,
    /// Whether the container has an input. The first client that attaches finds it empty.
    pub stdin: bool,
    /// Whether that input ends with the first client's.
    pub stdin_once: bool,
    /// Whether its streams are a terminal; errors are then part of the output.
    pub terminal: bool,
    /// Which processes it sees, and which see it.
    #[serde(default)]
    pub process_namespace: ProcessNamespace,
    /// Where standard output and error go, in the CRI log format.
    pub log_file: PathBuf,
    /// The log is moved to `<log_file>.1` when it reaches this many bytes.
    pub log_limit_bytes: u64,
    /// Where the [`Exit`] is left for a runtime that was not there when it happened.
    pub exit_file: PathBuf,
}

/// In which process namespace a container runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessNamespace {
    /// One of its own.
    #[default]
    Own,
    /// The pod's, which others share.
    Pod,
    /// That of another container, which runs.
    Of(String),
}

/// One overlay mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Place in the root, `/` for the root itself.
    pub target: String,
    /// The read-only directories below it, topmost first.
    pub lowers: Vec<PathBuf>,
    /// What the container writes.
    pub upper: PathBuf,
    /// The overlay's working directory, on the same file system as `upper`.
    pub work: PathBuf,
}

/// One bind mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// The directory or file to show.
    pub source: PathBuf,
    /// A path below `source` that the container may have influenced: resolved without leaving
    /// `source`. Empty for `source` itself.
    pub sub_path: String,
    /// Place in the root; resolved without leaving the root, made where it is missing.
    pub target: String,
    /// Whether writing through it is refused.
    pub read_only: bool,
}

/// A command to run in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The container.
    pub container: String,
    /// The command and its arguments, never empty.
    pub arguments: Vec<String>,
    /// Whether the given descriptors are a terminal that shall control the new session.
    pub terminal: bool,
    /// Whether the command is killed when the connection closes before it ended.
    pub kill_on_close: bool,
}
