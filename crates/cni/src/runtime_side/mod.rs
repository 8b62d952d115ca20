//! The other end of the protocol: runs lists of plugins as a container runtime does (CNI
//! specification 1.1.0, section 3), and keeps results where libcni keeps them.
//!
//! ```text
//! /etc/cni/net.d ─▶ List ─┐
//!                         ├─▶ Driver ─▶ one process a plugin ─▶ result ─▶ Cache
//! container, interface ───┘
//! ```

mod cache;
mod list;

use std::ffi::OsString;
use std::path::PathBuf;

use nix::fcntl::FlockArg;
use serde_json::{Map, Value, json};

pub use cache::CACHE_DIRECTORY;
use cache::Cache;
pub use list::{List, Plugin};

use crate::config::ValidAttachment;
use crate::exec::Call;
use crate::fault::{Fault, INCOMPATIBLE_VERSION, INVALID_CONFIG};
use crate::request::{check_container_id, check_interface};
use crate::version::at_least;

/// Longest run of one plugin, seconds: more than its own delegate may take.
const PLUGIN_TIMEOUT_S: u64 = 90;
/// What plugins find programs by. Nothing else is inherited: a plugin does the same whoever
/// started us.
const PROGRAM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs lists of plugins.
#[derive(Clone, Debug)]
pub struct Driver {
    /// Directories of plugins, in order.
    pub plugin_path: Vec<PathBuf>,
    /// Where results are kept, in a directory `results`.
    pub cache_directory: PathBuf,
}

/// One interface of one container, as the plugins are told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Target {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`; empty when it is gone.
    pub namespace: PathBuf,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`.
    pub arguments: Vec<(String, String)>,
    /// What plugins with these capabilities get as `runtimeConfig`.
    pub capabilities: Map<String, Value>,
}

impl Driver {
    /// Runs ADD of each plugin in order, each with the result of the one before, and keeps the
    /// last result. On a fault the caller calls [`Driver::del`].
    ///
    /// # Errors
    /// The plugin's fault, with its name; code 7 when this interface was added and not deleted.
    pub fn add(&self, list: &List, target: &Target) -> Result<Value, Fault> {
        check_target(target)?;
        let cache = self.open(list, FlockArg::LockShared)?;
        if cache.read(target)?.is_some() {
            return Err(Fault::new(
                INVALID_CONFIG,
                format!(
                    "the interface {} of container {} is on the network {} already",
                    target.interface,
                    target.container_id,
                    list.name()
                ),
                "delete it before it is added again",
            ));
        }
        let mut result = Value::Null;
        for plugin in list.plugins() {
            result = self.run("ADD", list, plugin, Some(target), &previous(&result))?;
            if !result.is_object() {
                let problem = Fault::new(INVALID_CONFIG, "it answered no result", result);
                return Err(told("ADD", plugin, problem));
            }
        }
        cache.write(list, target, &result)?;
        Ok(result)
    }

    /// Whether the interface was added and not deleted.
    pub fn is_added(&self, list: &List, target: &Target) -> bool {
        let cache = self.open(list, FlockArg::LockShared);
        cache.and_then(|cache| cache.read(target)).is_ok_and(|entry| entry.is_some())
    }

    /// Runs DEL of each plugin in reverse order, each with the last result of ADD, and forgets
    /// the result. What was never added is no error.
    ///
    /// # Errors
    /// The plugin's fault, with its name; to be tried again.
    pub fn del(&self, list: &List, target: &Target) -> Result<(), Fault> {
        check_target(target)?;
        let cache = self.open(list, FlockArg::LockShared)?;
        self.del_locked(&cache, list, target)
    }

    /// Runs CHECK of each plugin in order, each with the last result of ADD; nothing where the
    /// list says `disableCheck`.
    ///
    /// # Errors
    /// The plugin's fault, with its name; code 1 for lists before 0.4.0; code 7 without a result.
    pub fn check(&self, list: &List, target: &Target) -> Result<(), Fault> {
        check_target(target)?;
        require(list, "0.4.0", "CHECK")?;
        if list.disables("disableCheck") {
            return Ok(());
        }
        let cache = self.open(list, FlockArg::LockShared)?;
        let result = cache.read(target)?.map(|entry| entry.result).ok_or_else(|| {
            let message = format!(
                "no result of adding {} of container {} to the network {} is kept in {}",
                target.interface,
                target.container_id,
                list.name(),
                self.cache_directory.display()
            );
            Fault::new(INVALID_CONFIG, message, "add it first, or name the directory that has it")
        })?;
        list.plugins().iter().try_for_each(|plugin| {
            self.run("CHECK", list, plugin, Some(target), &previous(&result)).map(drop)
        })
    }

    /// Runs STATUS of every plugin. Lists before 1.1.0 cannot be asked.
    ///
    /// # Errors
    /// The first fault, which also tells the others (CNI-23).
    pub fn status(&self, list: &List) -> Result<(), Fault> {
        if !at_least(list.version(), "1.1.0") {
            return Ok(());
        }
        let ask = |plugin| self.run("STATUS", list, plugin, None, &Map::new()).err();
        Fault::all(list.plugins().iter().filter_map(ask).collect())
    }

    /// Deletes what was added and is not among the living, and then runs GC of every plugin.
    /// Waits for running ADDs and DELs and excludes new ones; goes on after a fault (CNI-23).
    /// Nothing where the list says `disableGC`.
    ///
    /// # Errors
    /// The first fault, which also tells the others.
    pub fn gc(&self, list: &List, living: &[ValidAttachment]) -> Result<(), Fault> {
        if list.disables("disableGC") {
            return Ok(());
        }
        let cache = self.open(list, FlockArg::LockExclusive)?;
        let mut faults = Vec::new();
        for target in cache.targets()? {
            let lives = living.iter().any(|one| {
                one.container_id == target.container_id && one.interface == target.interface
            });
            if !lives {
                faults.extend(self.del_locked(&cache, list, &target).err());
            }
        }
        if at_least(list.version(), "1.1.0") {
            let mut further = Map::new();
            further.insert("cni.dev/valid-attachments".into(), json!(living));
            for plugin in list.plugins() {
                faults.extend(self.run("GC", list, plugin, None, &further).err());
            }
        }
        Fault::all(faults)
    }

    /// Asks every plugin which versions it speaks. Answers its document, by its name.
    ///
    /// # Errors
    /// The plugin's fault, with its name.
    pub fn versions(&self, list: &List) -> Result<Vec<(String, Value)>, Fault> {
        let ask = |plugin: &Plugin| {
            let answer = self.run("VERSION", list, plugin, None, &Map::new())?;
            Ok((plugin.kind().to_owned(), answer))
        };
        list.plugins().iter().map(ask).collect()
    }

    fn open(&self, list: &List, lock: FlockArg) -> Result<Cache, Fault> {
        Cache::open(&self.cache_directory, list.name(), lock)
    }

    fn del_locked(&self, cache: &Cache, list: &List, target: &Target) -> Result<(), Fault> {
        // Before 0.4.0 DEL was not told the result.
        let told = at_least(list.version(), "0.4.0");
        let result = cache.read(target)?.map(|entry| entry.result).filter(|_| told);
        let previous = previous(&result.unwrap_or_default());
        for plugin in list.plugins().iter().rev() {
            self.run("DEL", list, plugin, Some(target), &previous)?;
        }
        cache.remove(target)
    }

    fn run(
        &self,
        command: &str,
        list: &List,
        plugin: &Plugin,
        target: Option<&Target>,
        further: &Map<String, Value>,
    ) -> Result<Value, Fault> {
        let path = std::env::join_paths(&self.plugin_path).map_err(|error| {
            Fault::new(INVALID_CONFIG, "a directory of plugins has a colon in its name", error)
        })?;
        let mut environment: Vec<(&str, OsString)> = vec![
            ("PATH", PROGRAM_PATH.into()),
            ("CNI_COMMAND", command.into()),
            ("CNI_PATH", path),
        ];
        if let Some(target) = target {
            environment.extend([
                ("CNI_CONTAINERID", target.container_id.clone().into()),
                ("CNI_NETNS", target.namespace.clone().into()),
                ("CNI_IFNAME", target.interface.clone().into()),
                ("CNI_ARGS", arguments(&target.arguments).into()),
            ]);
        }
        let capabilities = target.map(|target| &target.capabilities);
        let answer = Call {
            plugin: plugin.kind(),
            path: &self.plugin_path,
            environment: &environment,
            inherits: false,
            input: &list.input(plugin, capabilities, further),
            words_pass: false,
            timeout_s: PLUGIN_TIMEOUT_S,
        };
        answer.run().map_err(|fault| told(command, plugin, fault))
    }
}

/// The fault of a plugin, with its name, in the words that libcni uses.
fn told(command: &str, plugin: &Plugin, fault: Fault) -> Fault {
    let (kind, command) = (plugin.kind(), command.to_lowercase());
    let message = format!("plugin type={kind:?} failed ({command}): {}", fault.message);
    Fault { message, ..fault }
}

/// The earlier result as a key of the configuration.
fn previous(result: &Value) -> Map<String, Value> {
    let mut keys = Map::new();
    if !result.is_null() {
        keys.insert("prevResult".into(), result.clone());
    }
    keys
}

fn arguments(pairs: &[(String, String)]) -> String {
    let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(";")
}

fn check_target(target: &Target) -> Result<(), Fault> {
    check_container_id(&target.container_id)?;
    check_interface(&target.interface)?;
    let has_separator = |text: &String| text.contains([';', '=']);
    match target.arguments.iter().find(|(key, value)| has_separator(key) || value.contains(';')) {
        None => Ok(()),
        Some((key, value)) => Err(Fault::new(
            INVALID_CONFIG,
            format!("invalid argument {key:?} with the value {value:?}"),
            "';' ends an argument and '=' its key",
        )),
    }
}

fn require(list: &List, least: &str, command: &str) -> Result<(), Fault> {
    if at_least(list.version(), least) {
        return Ok(());
    }
    Err(Fault::new(
        INCOMPATIBLE_VERSION,
        format!("configuration version {} does not support {command}", list.version()),
        format!("it came with {least}"),
    ))
}
