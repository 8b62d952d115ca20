//! [`List`]: a network configuration list, from a directory of an administrator's files.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::fault::{DECODING_FAILURE, Fault, INCOMPATIBLE_VERSION, INVALID_CONFIG, IO_FAILURE};
use crate::request::is_identifier;
use crate::version::{SUPPORTED, of_config};

/// Largest file that is read, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Plugins of a list, at most.
const PLUGINS_MAX: usize = 64;
/// What files of lists and of single plugins end in, as libcni looks for them.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
/// What files of plugins end in that are dropped into the directory of a list.
const DROPPED_EXTENSION: &str = "conf";

/// A list of plugins that make one network.
#[derive(Clone, Debug, PartialEq)]
pub struct List {
    name: String,
    version: String,
    plugins: Vec<Plugin>,
    document: Value,
}

/// One plugin of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Plugin {
    kind: String,
    config: Map<String, Value>,
}

impl Plugin {
    /// Its program: the key `type`.
    pub fn kind(&self) -> &str {
        &self.kind
    }
}

impl List {
    /// The list that comes first in a directory by its file's name, which runtimes take for
    /// pods; `None` while there is none.
    ///
    /// # Errors
    /// A file that cannot be read as one, named.
    pub fn first(directory: &Path) -> Result<Option<Self>, Fault> {
        match files(directory, &EXTENSIONS)?.first() {
            Some(file) => Self::read(file).map(Some),
            None => Ok(None),
        }
    }

    /// The list of a name in a directory.
    ///
    /// # Errors
    /// When there is none; it tells the files that could not be read.
    pub fn named(directory: &Path, name: &str) -> Result<Self, Fault> {
        let mut unreadable = Vec::new();
        for file in files(directory, &EXTENSIONS)? {
            match Self::read(&file) {
                Ok(list) if list.name == name => return Ok(list),
                Ok(_) => {}
                Err(fault) => unreadable.push(fault.to_string()),
            }
        }
        Err(Fault::new(
            INVALID_CONFIG,
            format!("no network {name:?} is configured in {}", directory.display()),
            match unreadable.as_slice() {
                [] => "look at the key name of the files there".to_owned(),
                faults => format!("but some files cannot be read: {}", faults.join("; ")),
            },
        ))
    }

    /// A list, or a single plugin as a list of one, from a file. Unless the list says
    /// `loadOnlyInlinedPlugins`, plugins follow from files in the directory of its name beside
    /// the file.
    ///
    /// # Errors
    /// When the file cannot be read as one, or others than its owner could write it.
    pub fn read(file: &Path) -> Result<Self, Fault> {
        let mut document = read_file(file)?;
        let told = |fault: Fault| Fault {
            message: format!("{}: {}", file.display(), fault.message),
            ..fault
        };
        if document.get("plugins").is_none() && document.get("type").is_some() {
            document = json!({
                "cniVersion": document["cniVersion"],
                "name": document["name"],
                "plugins": [document],
            });
        } else if !is_set(&document, "loadOnlyInlinedPlugins") {
            let name = document["name"].as_str().filter(|name| is_identifier(name));
            let beside = file.parent().zip(name).map(|(parent, name)| parent.join(name));
            let mut plugins = document["plugins"].as_array().cloned().unwrap_or_default();
            for dropped in files(&beside.unwrap_or_default(), &[DROPPED_EXTENSION])? {
                plugins.push(read_file(&dropped)?);
            }
            document["plugins"] = plugins.into();
        }
        Self::from_value(document).map_err(told)
    }

    /// A list from its document, all plugins inlined.
    ///
    /// # Errors
    /// Code 7 for what is no list; code 1 when no version of it is spoken here.
    pub fn from_value(document: Value) -> Result<Self, Fault> {
        let name = document["name"].as_str().unwrap_or_default().to_owned();
        if !is_identifier(&name) {
            return Err(invalid(
                &format!("invalid network name: {name:?}"),
                "it starts with a letter or digit; letters, digits, '_', '.' and '-' follow",
            ));
        }
        let version = highest_version(&document)?;
        let plugins = document["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
        if plugins.is_empty() || plugins.len() > PLUGINS_MAX {
            let message = format!("the list {name} has {} plugins", plugins.len());
            return Err(invalid(&message, format!("it has 1 to {PLUGINS_MAX}")));
        }
        let plugins = plugins.iter().map(plugin).collect::<Result<_, _>>()?;
        Ok(Self { name, version, plugins, document })
    }

    /// The network's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The highest version that it allows and that is spoken here.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Its plugins, in order.
    pub fn plugins(&self) -> &[Plugin] {
        &self.plugins
    }

    /// The whole document, all plugins inlined.
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// Whether a key like `disableCheck` is set. It may be a text, as in old lists.
    pub(super) fn disables(&self, key: &str) -> bool {
        is_set(&self.document, key)
    }

    /// What a plugin reads: its own object with the list's name and version, what the runtime
    /// knows for its capabilities, and further keys. All else goes through unchanged.
    pub(super) fn input(
        &self,
        plugin: &Plugin,
        capabilities: Option<&Map<String, Value>>,
        further: &Map<String, Value>,
    ) -> Value {
        let mut input = plugin.config.clone();
        let wanted = input.remove("capabilities").unwrap_or_default();
        input.insert("name".into(), json!(self.name));
        input.insert("cniVersion".into(), json!(self.version));
        let mut known = Map::new();
        for (key, value) in capabilities.into_iter().flatten() {
            if wanted.get(key) == Some(&Value::Bool(true)) {
                known.insert(key.clone(), value.clone());
            }
        }
        if !known.is_empty() {
            input.insert("runtimeConfig".into(), known.into());
        }
        input.extend(further.clone());
        input.into()
    }
}

fn plugin(value: &Value) -> Result<Plugin, Fault> {
    let config = value.as_object().cloned().unwrap_or_default();
    match config.get("type").and_then(Value::as_str).filter(|kind| !kind.is_empty()) {
        Some(kind) => Ok(Plugin { kind: kind.to_owned(), config: config.clone() }),
        None => Err(invalid("a plugin of the list has no type", value)),
    }
}

/// The highest of `cniVersion` and `cniVersions` that is spoken here.
fn highest_version(document: &Value) -> Result<String, Fault> {
    let listed = document["cniVersions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_listed = |version: &&&str| listed.iter().any(|one| one == **version);
    let highest = SUPPORTED.iter().rev().find(is_listed);
    let own = of_config(document);
    let place = |version: &str| SUPPORTED.iter().position(|one| *one == version);
    match (highest, own) {
        (Some(listed), Ok(own)) if place(listed) > place(&own) => Ok((*listed).to_owned()),
        (_, Ok(own)) => Ok(own),
        (Some(listed), Err(fault)) if fault.code == INCOMPATIBLE_VERSION => {
            Ok((*listed).to_owned())
        }
        (_, Err(fault)) => Err(fault),
    }
}

fn is_set(document: &Value, key: &str) -> bool {
    match document.get(key) {
        Some(Value::Bool(set)) => *set,
        Some(Value::String(text)) => text.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

/// Files of a directory with one of these extensions, by name. None where it is missing.
fn files(directory: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Fault> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(unreadable(directory, &error)),
    };
    let metadata = fs::metadata(directory).map_err(|error| unreadable(directory, &error))?;
    refuse_shared(directory, &metadata)?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| unreadable(directory, &error))?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if extension.is_some_and(|extension| extensions.contains(&extension)) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path) -> Result<Value, Fault> {
    let failed = |error: io::Error| unreadable(path, &error);
    let file = File::open(path).map_err(failed)?;
    refuse_shared(path, &file.metadata().map_err(failed)?)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(unreadable(path, &format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| {
        Fault::new(DECODING_FAILURE, format!("{} is not JSON", path.display()), error)
    })?;
    if !value.is_object() {
        return Err(invalid(&format!("{} is no configuration", path.display()), "write an object"));
    }
    Ok(value)
}

/// Whoever can write a configuration runs programs as root.
fn refuse_shared(path: &Path, metadata: &fs::Metadata) -> Result<(), Fault> {
    let foreign = ![0, nix::unistd::geteuid().as_raw()].contains(&metadata.uid());
    if metadata.mode() & 0o002 == 0 && !foreign {
        return Ok(());
    }
    let path = path.display();
    Err(invalid(
        &format!("{path} can be written by others than root"),
        format!("look for who changed it, then: chown root {path}; chmod o-w {path}"),
    ))
}

fn unreadable(path: &Path, problem: &dyn std::fmt::Display) -> Fault {
    Fault::new(IO_FAILURE, format!("cannot read {}", path.display()), problem)
}

fn invalid(message: &str, details: impl std::fmt::Display) -> Fault {
    Fault::new(INVALID_CONFIG, message, details)
}

#[cfg(test)]
mod tests;
