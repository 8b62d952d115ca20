//! [`IptablesDriver`]: our chains in iptables, by its own programs.
//!
//! The programs are the only stable interface: the legacy variant's kernel takes a whole table as one
//! blob under `/run/xtables.lock`, and the nft variant keeps its rules in a form of its own. Both are
//! on most machines. Rules in both apply, so we stay in the one that others use.

mod legacy;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use model::Family;
use netlink::{Error, Netns};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use render::OpError;
use render::iptables::language::TableId;
use render::iptables::state::EIO;
use render::iptables::{IptablesObserved, IptablesOp, IptablesProgram, Transaction, diff, text};
use render::nft::NftOp;

use crate::nft::NftDriver;

/// Where the programs are looked for, whatever `PATH` says.
const DIRECTORIES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
/// Seconds that a program waits for the lock of the legacy variant.
const LOCK_WAIT_S: &str = "5";
/// How long a program may run: a table of 50,000 Services takes some 15 s of a processor, of which a
/// busy node gives a part. One that is killed begins anew and gets no further.
const RUN_TIME_MAX: Duration = Duration::from_secs(300);
/// Bytes that a program may print: 50,000 Services have a tenth of it.
const OUTPUT_BYTES_MAX: u64 = 512 << 20;
/// Bytes of a complaint that are kept.
const COMPLAINT_BYTES_MAX: u64 = 4 << 10;

/// The two kinds of programs and tables that go by the name of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// x_tables of the kernel.
    Legacy,
    /// The same rules in nf_tables.
    Nft,
}

impl Variant {
    /// Both of them, the one to take when nothing decides first.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    fn program(self, family: Family, what: &str) -> Option<PathBuf> {
        self.program_in(&DIRECTORIES.map(Path::new), family, what)
    }

    fn program_in(self, directories: &[&Path], family: Family, what: &str) -> Option<PathBuf> {
        let family = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let variant = match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
        };
        let name = format!("{family}-{variant}-{what}");
        directories.iter().map(|directory| directory.join(&name)).find(|it| it.exists())
    }

    fn is_installed(self) -> bool {
        self.is_installed_in(&DIRECTORIES.map(Path::new))
    }

    /// What cannot be read back would be written again and again.
    fn is_installed_in(self, directories: &[&Path]) -> bool {
        let has = |what: &&str| self.program_in(directories, Family::V4, what).is_some();
        ["restore", "save"].iter().all(has)
    }
}

/// Whether this machine has any variant.
pub fn is_installed() -> bool {
    Variant::ALL.into_iter().any(Variant::is_installed)
}

/// The writer of our iptables chains, in one variant.
pub struct IptablesDriver {
    variant: Variant,
    /// Where the programs are to run.
    namespace: Netns,
    /// Forgets tracked flows.
    flows: NftDriver,
    /// Of tables of the legacy variant, as they were read or written last.
    shapes: BTreeMap<TableId, legacy::Shape>,
}

impl IptablesDriver {
    /// Opens the driver in the network namespace of the calling thread, with the variant that is in
    /// use there: the one that has chains of ours, else the legacy one where only that has any
    /// rules, else nft.
    ///
    /// # Errors
    /// When no variant is installed, or the system refuses.
    pub fn open() -> Result<Self, OpError> {
        let installed: Vec<Variant> =
            Variant::ALL.into_iter().filter(|variant| variant.is_installed()).collect();
        let Some(&first) = installed.first() else {
            return Err(OpError {
                errno: libc::ENOENT,
                message: format!(
                    "neither iptables-nft-restore with iptables-nft-save nor the two of \
                     iptables-legacy are in {}: install iptables, or choose another \
                     --service-backend",
                    DIRECTORIES.join(", ")
                ),
            });
        };
        let mut driver = Self::with(first)?;
        if installed.len() > 1 {
            driver.variant = driver.variant_in_use()?;
            driver.sweep_others()?;
        }
        Ok(driver)
    }

    /// Opens the driver with one variant.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn with(variant: Variant) -> Result<Self, OpError> {
        let namespace = Netns::current().map_err(refused)?;
        let flows = NftDriver::open()?;
        Ok(Self { variant, namespace, flows, shapes: BTreeMap::new() })
    }

    /// The variant that it writes.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Reads back what is ours.
    ///
    /// # Errors
    /// When a program fails; nothing may be concluded about what is there.
    pub fn observe(&mut self) -> Result<IptablesObserved, OpError> {
        // First, so that what changes meanwhile is seen by the next look.
        self.note_shapes()?;
        self.observe_in(self.variant)
    }

    /// Whether the tables have changed since they were read or written, at the cost of some system
    /// calls. The nft variant tells of its changes itself, as all of nf_tables.
    pub fn has_changed(&self) -> bool {
        let present = || legacy::shapes(&self.namespace);
        self.variant == Variant::Legacy && present().is_ok_and(|present| present != self.shapes)
    }

    /// Carries out one op.
    ///
    /// # Errors
    /// What the program says, with the table and the first of the commands.
    pub fn apply(&mut self, op: &IptablesOp) -> Result<(), OpError> {
        match op {
            IptablesOp::Transaction(transaction) => {
                self.commit_in(self.variant, transaction)?;
                self.note_shapes()
            }
            IptablesOp::ForgetFlows(stale) => self.flows.apply(&NftOp::ForgetFlows(stale.clone())),
        }
    }

    fn note_shapes(&mut self) -> Result<(), OpError> {
        if self.variant == Variant::Legacy {
            self.shapes = legacy::shapes(&self.namespace).map_err(refused)?;
        }
        Ok(())
    }

    /// Takes away what stands in other variants than ours. Nobody keeps it up to date, and both
    /// would apply.
    fn sweep_others(&self) -> Result<(), OpError> {
        for variant in Variant::ALL.into_iter().filter(|variant| *variant != self.variant) {
            let left = self.observe_in(variant)?;
            for op in diff(&IptablesProgram::default(), &left) {
                if let IptablesOp::Transaction(transaction) = op {
                    self.commit_in(variant, &transaction)?;
                }
            }
        }
        Ok(())
    }

    fn commit_in(&self, variant: Variant, transaction: &Transaction) -> Result<(), OpError> {
        let table = transaction.table;
        let about = || match transaction.commands.as_slice() {
            [] => format!("cannot change table {table}"),
            [one] => format!("cannot change table {table}: {one}"),
            [first, ..] => format!(
                "cannot change table {table}: {first}, and {} more",
                transaction.commands.len() - 1
            ),
        };
        let Some(program) = variant.program(table.family, "restore") else {
            return Err(missing(&about(), table.family));
        };
        let arguments = ["--noflush", "-w", LOCK_WAIT_S];
        let input = text::restore(transaction, variant == Variant::Nft);
        self.run(&program, &arguments, &input, &about).map(drop)
    }

    fn observe_in(&self, variant: Variant) -> Result<IptablesObserved, OpError> {
        let mut observed = IptablesObserved::default();
        for family in [Family::V4, Family::V6] {
            text::read(&mut observed, family, &self.saved(variant, family)?);
        }
        Ok(observed)
    }

    fn variant_in_use(&self) -> Result<Variant, OpError> {
        for variant in Variant::ALL {
            if self.observe_in(variant)? != IptablesObserved::default() {
                return Ok(variant);
            }
        }
        let has_tables = |variant| {
            let saved = self.saved(variant, Family::V4)?;
            Ok(saved.lines().any(|line| line.starts_with('*')))
        };
        let only_legacy = has_tables(Variant::Legacy)? && !has_tables(Variant::Nft)?;
        Ok(if only_legacy { Variant::Legacy } else { Variant::Nft })
    }

    /// All tables as text. Where there is none, no program runs: one of the legacy variant would
    /// make tables, with hooks on every packet's way.
    fn saved(&self, variant: Variant, family: Family) -> Result<String, OpError> {
        let names = || self.namespace.run(|| legacy::names(family)).map_err(refused);
        if variant == Variant::Legacy && names()?.is_empty() {
            return Ok(String::new());
        }
        let about = || format!("cannot read the tables of {family}");
        match (variant.program(family, "save"), variant.program(family, "restore")) {
            (Some(program), _) => self.run(&program, &[], "", &about),
            // Where nothing can be written either, nothing of ours is there.
            (None, None) => Ok(String::new()),
            (None, Some(_)) => Err(missing(&about(), family)),
        }
    }

    /// Runs a program and answers what it printed. Its input and output are files in memory, so
    /// that neither side waits for the other.
    fn run(
        &self,
        program: &Path,
        arguments: &[&str],
        input: &str,
        about: &dyn Fn() -> String,
    ) -> Result<String, OpError> {
        let failed = |errno: i32, reason: &str| OpError {
            errno,
            message: format!("{}: {}: {reason}", about(), program.display()),
        };
        let broken =
            |error: std::io::Error| failed(error.raw_os_error().unwrap_or(EIO), &error.to_string());
        let output = memory().map_err(broken)?;
        let spawn = || -> std::io::Result<Child> {
            let mut file = memory()?;
            file.write_all(input.as_bytes())?;
            file.seek(SeekFrom::Start(0))?;
            // No variable of ours names libraries for it to load.
            Command::new(program)
                .args(arguments)
                .env_clear()
                .stdin(file)
                .stdout(output.try_clone()?)
                .stderr(Stdio::piped())
                .spawn()
        };
        let mut child = self.namespace.run(spawn).map_err(refused)?.map_err(broken)?;
        let complaint = complaint_of(&mut child).map_err(broken)?;
        let status = child.wait().map_err(broken)?;
        if !status.success() {
            return Err(failed(EIO, complaint.trim()));
        }
        let mut printed = String::new();
        let mut output = output;
        output.seek(SeekFrom::Start(0)).map_err(broken)?;
        output.take(OUTPUT_BYTES_MAX).read_to_string(&mut printed).map_err(broken)?;
        Ok(printed)
    }
}

/// What a program complains about until it ends. One that does not end in time is killed.
fn complaint_of(child: &mut Child) -> std::io::Result<String> {
    let Some(mut pipe) = child.stderr.take() else { return Ok(String::new()) };
    let deadline = Instant::now() + RUN_TIME_MAX;
    let mut complaint = Vec::new();
    let mut buffer = [0; 512];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut ready = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, timeout)? == 0 {
            child.kill()?;
            let error =
                format!("it did not end within {} s and was killed", RUN_TIME_MAX.as_secs());
            // It is gone: what remains is to bury it.
            child.wait()?;
            return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, error));
        }
        match pipe.read(&mut buffer)? {
            0 => return Ok(String::from_utf8_lossy(&complaint).into_owned()),
            count => {
                let room = COMPLAINT_BYTES_MAX as usize - complaint.len();
                complaint.extend(buffer.iter().take(count.min(room)));
            }
        }
    }
}

fn memory() -> std::io::Result<File> {
    Ok(File::from(memfd_create(c"iptables", MFdFlags::MFD_CLOEXEC)?))
}

fn missing(about: &str, family: Family) -> OpError {
    let message = format!("{about}: iptables has no program for {family} here: install iptables");
    OpError { errno: libc::ENOENT, message }
}

fn refused(error: Error) -> OpError {
    OpError { errno: error.errno, message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Restoring alone is not enough: what is there would read as nothing, and be written anew by
    /// each process.
    #[test]
    fn a_variant_that_cannot_be_read_back_is_not_installed() {
        let directory = std::env::temp_dir().join(format!("flatnet-xt-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let is_installed = || Variant::Legacy.is_installed_in(&[&directory]);
        assert!(!is_installed());
        for (program, whole) in [("iptables-legacy-restore", false), ("iptables-legacy-save", true)]
        {
            File::create(directory.join(program)).expect("a file");
            assert_eq!(is_installed(), whole, "with {program}");
        }
        assert!(!Variant::Nft.is_installed_in(&[&directory]));
        std::fs::remove_dir_all(&directory).expect("removed");
    }
}
