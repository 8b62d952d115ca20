//! [`Loader`]: an object file of eBPF into the kernel. Maps are taken from their pins or made and
//! pinned; programs are loaded and pinned.
//!
//! aya's own loader reads the types of the whole kernel first, for relocations that our programs do
//! not have: that was most of what an agent with Services in eBPF took to start.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::MapData;
use aya_obj::generated::{bpf_attach_type, bpf_prog_type};
use aya_obj::maps::PinningType;
use aya_obj::{Function, Object, Program, ProgramSection};
use render::OpError;

use super::{absent, refused, syscalls};

/// Room for what the kernel says of a program that it refuses, in bytes; it says the last of it.
const REFUSAL_BYTES: usize = 1 << 20;
/// Of that the last lines are told.
const REFUSAL_LINES: usize = 6;
/// So often a program is tried whose check a signal ended.
const LOAD_ATTEMPTS: usize = 5;

/// What shall be loaded, and how.
pub(super) struct Loader<'a> {
    object: &'a [u8],
    /// Of what an error shall tell.
    what: &'static str,
    directory: PathBuf,
    places: BTreeMap<&'a str, PathBuf>,
    entries: BTreeMap<&'a str, u32>,
}

/// A map of the object, in the kernel.
struct Made {
    object: aya_obj::Map,
    fd: OwnedFd,
}

impl<'a> Loader<'a> {
    /// An object file whose maps are pinned in a directory. `what` it is, for people.
    pub(super) fn new(what: &'static str, object: &'a [u8], directory: &Path) -> Self {
        let directory = directory.to_owned();
        Self { object, what, directory, places: BTreeMap::new(), entries: BTreeMap::new() }
    }

    /// A map that is pinned elsewhere.
    pub(super) fn pinned_at(&mut self, map: &'a str, path: PathBuf) {
        self.places.insert(map, path);
    }

    /// How many entries a map has that is made now.
    pub(super) fn with_entries(&mut self, map: &'a str, entries: u32) {
        self.entries.insert(map, entries);
    }

    /// Makes the maps that are not there.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub(super) fn make_maps(&self) -> Result<(), OpError> {
        let (mut object, types) = self.parse()?;
        self.maps(&mut object, types.as_ref()).map(drop)
    }

    /// Makes the maps that are not there, and loads and pins programs, each by its name and place.
    ///
    /// # Errors
    /// When the kernel refuses a map or a program, with its last words.
    pub(super) fn load(&self, programs: &[(&str, PathBuf)]) -> Result<(), OpError> {
        let (mut object, types) = self.parse()?;
        let maps = self.maps(&mut object, types.as_ref())?;
        let sections = object.functions.keys().map(|(section, _)| *section).collect();
        let known = maps.iter().map(|(name, map)| (name.as_str(), map.fd.as_raw_fd(), &map.object));
        object.relocate_maps(known, &sections).map_err(|error| self.refused(&error))?;
        object.relocate_calls(&sections).map_err(|error| self.refused(&error))?;
        for (name, pin) in programs {
            let program = object.programs.get(*name).ok_or_else(absent)?;
            let function = object.functions.get(&program.function_key()).ok_or_else(absent)?;
            let loaded = self.program(name, program, function, types.as_ref())?;
            // What an interrupted process left of this build.
            let _ = fs::remove_file(pin);
            syscalls::pin(loaded.as_fd(), pin)
                .map_err(|error| refused(&format!("pin the program {}", pin.display()), &error))?;
        }
        Ok(())
    }

    /// The object, and its types in the kernel, which some maps need.
    fn parse(&self) -> Result<(Object, Option<OwnedFd>), OpError> {
        let mut object = Object::parse(self.object).map_err(|error| self.refused(&error))?;
        let Some(features) = aya::features().btf() else { return Ok((object, None)) };
        let types =
            object.fixup_and_sanitize_btf(features).map_err(|error| self.refused(&error))?;
        let types = types.map(|types| syscalls::load_types(&types.to_bytes())).transpose();
        Ok((object, types.map_err(|error| self.refused(&error))?))
    }

    fn maps(
        &self,
        object: &mut Object,
        types: Option<&OwnedFd>,
    ) -> Result<BTreeMap<String, Made>, OpError> {
        let mut made = BTreeMap::new();
        for (name, mut map) in object.maps.drain() {
            if let Some(entries) = self.entries.get(name.as_str()) {
                map.set_max_entries(*entries);
            }
            let fd = self.map(&name, &map, types)?;
            made.insert(name, Made { object: map, fd });
        }
        Ok(made)
    }

    fn map(
        &self,
        name: &str,
        map: &aya_obj::Map,
        types: Option<&OwnedFd>,
    ) -> Result<OwnedFd, OpError> {
        let failed =
            |error: &(dyn Error + 'static)| refused(&format!("make the map {name}"), error);
        let create = || {
            if let Some(inner) = map.inner() {
                return create_map_of_maps(name, map, inner).map_err(|error| failed(&*error));
            }
            let made = MapData::create(map.clone(), name, types.map(AsFd::as_fd));
            let made = made.map_err(|error| failed(&error))?;
            if !map.data().is_empty() {
                syscalls::fill_constants(made.fd().as_fd(), map.data())
                    .map_err(|error| failed(&error))?;
            }
            made.fd().as_fd().try_clone_to_owned().map_err(|error| failed(&error))
        };
        let place = match (self.places.get(name), map.pinning()) {
            (Some(place), _) => place.clone(),
            (None, PinningType::ByName) => self.directory.join(name),
            (None, PinningType::None) => return create(),
        };
        if place.exists() {
            return syscalls::open_pin(&place)
                .map_err(|error| refused(&format!("open the map {}", place.display()), &error));
        }
        let fd = create()?;
        syscalls::pin(fd.as_fd(), &place)
            .map_err(|error| refused(&format!("pin the map {}", place.display()), &error))?;
        Ok(fd)
    }

    fn program(
        &self,
        name: &str,
        program: &Program,
        function: &Function,
        types: Option<&OwnedFd>,
    ) -> Result<OwnedFd, OpError> {
        let (kind, attach_type) = kind_of(&program.section).ok_or_else(absent)?;
        let functions = function.func_info.func_info_bytes();
        let lines = function.line_info.line_info_bytes();
        let new = syscalls::NewProgram {
            name,
            kind: kind as u32,
            attach_type: attach_type.map_or(0, |attach_type| attach_type as u32),
            instructions: &function.instructions,
            license: &program.license,
            types: types.map(AsFd::as_fd),
            functions: (&functions, function.func_info_rec_size),
            lines: (&lines, function.line_info_rec_size),
        };
        let error = match load_in_peace(&new) {
            Ok(loaded) => return Ok(loaded),
            Err(error) => error,
        };
        let mut words = vec![0; REFUSAL_BYTES];
        // Only to hear why.
        let _ = syscalls::load_program(&new, &mut words);
        let words = String::from_utf8_lossy(&words);
        let words: Vec<&str> = words.trim_end_matches('\0').trim_end().lines().collect();
        let last = words[words.len().saturating_sub(REFUSAL_LINES)..].join("; ");
        let mut refusal = refused(&format!("load the program {name} of {}", self.what), &error);
        if !last.is_empty() {
            refusal.message.push_str(&format!("; the kernel says: {last}"));
        }
        Err(refusal)
    }

    fn refused(&self, error: &(dyn Error + 'static)) -> OpError {
        refused(&format!("load {}", self.what), error)
    }
}

/// An array of maps with nothing in it. What the kernel shall know of those that come into it, it
/// takes from one that is made for that.
fn create_map_of_maps(
    name: &str,
    map: &aya_obj::Map,
    mut inner: aya_obj::Map,
) -> Result<OwnedFd, Box<dyn Error>> {
    inner.set_max_entries(1);
    let template = MapData::create(inner, name, None)?;
    let new = syscalls::NewMap {
        name,
        kind: map.map_type(),
        key_bytes: map.key_size() as usize,
        value_bytes: map.value_size() as usize,
        entries_max: map.max_entries(),
        inner: Some(template.fd().as_fd()),
    };
    Ok(syscalls::create_map(&new)?)
}

/// The kernel gives up its check of a program where a signal comes.
fn load_in_peace(new: &syscalls::NewProgram<'_>) -> io::Result<OwnedFd> {
    for _ in 1..LOAD_ATTEMPTS {
        match syscalls::load_program(new, &mut []) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            done => return done,
        }
    }
    syscalls::load_program(new, &mut [])
}

/// The kernel's numbers; `None` for what none of our objects has.
fn kind_of(section: &ProgramSection) -> Option<(bpf_prog_type, Option<bpf_attach_type>)> {
    match section {
        ProgramSection::SchedClassifier => Some((bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, None)),
        ProgramSection::CgroupSockAddr { attach_type } => {
            let kind = bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR;
            Some((kind, Some((*attach_type).into())))
        }
        ProgramSection::Xdp { .. } => {
            Some((bpf_prog_type::BPF_PROG_TYPE_XDP, Some(bpf_attach_type::BPF_XDP)))
        }
        ProgramSection::SkMsg => Some((bpf_prog_type::BPF_PROG_TYPE_SK_MSG, None)),
        ProgramSection::SockOps => Some((bpf_prog_type::BPF_PROG_TYPE_SOCK_OPS, None)),
        _ => None,
    }
}
