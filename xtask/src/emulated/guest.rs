//! What is in the emulated machine: Debian's kernel with its network modules, busybox, the few
//! programs that tests call, and the test programs at the very paths that they were built at.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::archive::Archive;
use super::programs::Built;
use crate::{process, source, tools};

/// Names the newest image of the release; it holds nothing itself.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// What the lane is for (spec/test-kernels.md).
const KERNEL_VERSION: &str = "6.1.";
const BUSYBOX_PACKAGE: &str = "busybox-static";
/// Directories of modules that tests may need, below `kernel/` of the package.
const MODULES: &[&str] = &["arch", "crypto", "drivers/net", "lib", "net"];
/// What of these drives hardware that the machine has not.
const HARDWARE: &str = "/drivers/net/ethernet/";
/// Lists that modprobe reads.
const MODULE_LISTS: &[&str] = &["modules.dep", "modules.alias", "modules.symbols"];
/// Programs that tests run beside ours. All are called by name.
const PROGRAMS: &[&str] = &[
    "nft",
    "ip",
    "tc",
    "iptables",
    "ip6tables",
    "iptables-legacy",
    "iptables-legacy-restore",
    "iptables-legacy-save",
];
/// What iptables loads by name as it runs.
const EXTENSIONS: &str = "/usr/lib/x86_64-linux-gnu/xtables";
const PROGRAM_DIRECTORIES: &[&str] = &["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// What tests read of the workspace, where they look for it.
const CASES: &str = "cases";
/// Tables by which programs name protocols and users.
const TABLES: &[&str] = &["/etc/protocols", "/etc/services", "/etc/passwd", "/etc/group"];
const INIT: &str = include_str!("init.sh");

/// The kernel, unpacked.
pub struct Kernel {
    /// The bootable file.
    pub image: PathBuf,
    /// Its release, such as `6.1.0-56-cloud-amd64`.
    pub release: String,
    modules: PathBuf,
}

impl Kernel {
    /// Debian's kernel, fetched when it is not there.
    ///
    /// # Errors
    /// When apt cannot fetch it, or the distribution's is another version.
    pub fn fetch() -> Result<Self> {
        let directory = tools::unpack(&image_package()?)?;
        let unpacked = directory.join("lib/modules");
        let release = std::fs::read_dir(&unpacked)
            .with_context(|| format!("no modules in {}", unpacked.display()))?
            .next()
            .context("the kernel's package has no modules")??
            .file_name()
            .to_string_lossy()
            .into_owned();
        if !release.starts_with(KERNEL_VERSION) {
            bail!(
                "{KERNEL_PACKAGE} of this distribution is {release}, not {KERNEL_VERSION}x: the \
                 emulated kernel is Debian 12's"
            );
        }
        let modules = unpacked.join(&release);
        let kernel =
            Self { image: directory.join(format!("boot/vmlinuz-{release}")), release, modules };
        kernel.index(&directory)?;
        Ok(kernel)
    }

    /// Writes the lists of modules, as the package's installation would.
    fn index(&self, directory: &Path) -> Result<()> {
        if MODULE_LISTS.iter().all(|list| self.modules.join(list).exists()) {
            return Ok(());
        }
        let busybox = busybox()?.display().to_string();
        let base = directory.display().to_string();
        process::run(&busybox, &["depmod", "-b", &base, &self.release])
    }

    fn add_to(&self, archive: &mut Archive) -> Result<()> {
        let place = format!("/lib/modules/{}", self.release);
        for list in MODULE_LISTS {
            archive.file(&format!("{place}/{list}"), &read(&self.modules.join(list))?)?;
        }
        for directory in MODULES {
            for module in source::files(&self.modules.join("kernel").join(directory), ".ko")? {
                let name = module.strip_prefix(&self.modules)?.display().to_string();
                if !format!("/{name}").contains(HARDWARE) {
                    archive.file(&format!("{place}/{name}"), &read(&module)?)?;
                }
            }
        }
        Ok(())
    }
}

/// Writes the archive that the machine boots with.
///
/// # Errors
/// When a file is missing or the archive cannot be written.
pub fn assemble(path: &Path, kernel: &Kernel, built: &Built, script: &str) -> Result<()> {
    let mut archive =
        Archive::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    for directory in ["/dev", "/proc", "/sys", "/bin"] {
        archive.directory(directory)?;
    }
    archive.program("/init", INIT.as_bytes())?;
    archive.file("/tests.sh", script.as_bytes())?;
    archive.program("/bin/busybox", &read(&busybox()?)?)?;
    kernel.add_to(&mut archive)?;
    for program in PROGRAMS {
        add_with_libraries(&mut archive, program)?;
    }
    for extension in source::files(Path::new(EXTENSIONS), ".so")? {
        archive.program(&extension.display().to_string(), &read(&extension)?)?;
    }
    for table in TABLES {
        let text = read(Path::new(table)).context("packages netbase and base-files have it")?;
        archive.file(table, &text)?;
    }
    for program in built.programs() {
        archive.program(&program.display().to_string(), &read(program)?)?;
    }
    for case in source::files(&process::root().join(CASES), ".case")? {
        archive.file(&case.display().to_string(), &read(&case)?)?;
    }
    for directory in built.directories() {
        archive.directory(&directory.display().to_string())?;
    }
    archive.finish()?;
    Ok(())
}

/// The package that the general name stands for.
fn image_package() -> Result<String> {
    let text = process::output("apt-cache", &["depends", KERNEL_PACKAGE]).unwrap_or_default();
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let image = names.map(str::trim).find(|name| name.starts_with("linux-image-"));
    image.map(str::to_owned).with_context(|| {
        format!(
            "apt knows no {KERNEL_PACKAGE}: the emulated kernel is Debian 12's; check \
             /etc/apt/sources.list and run `apt-get update`"
        )
    })
}

/// The static busybox of its package: installing it would replace the machine's own.
fn busybox() -> Result<PathBuf> {
    Ok(tools::unpack(BUSYBOX_PACKAGE)?.join("bin/busybox"))
}

fn add_with_libraries(archive: &mut Archive, program: &str) -> Result<()> {
    let mut places = PROGRAM_DIRECTORIES.iter().map(|place| Path::new(place).join(program));
    let path = places
        .find(|path| path.exists())
        .with_context(|| format!("{program} is not installed; `./x test` installs it"))?;
    let path = path.display().to_string();
    let libraries = process::output("ldd", &[&path])?;
    archive.program(&path, &read(Path::new(&path))?)?;
    for library in libraries.lines().filter_map(library_path) {
        archive.program(library, &read(Path::new(library))?)?;
    }
    Ok(())
}

/// The path in a line of ldd, `libc.so.6 => /lib/x/libc.so.6 (0x…)` or `/lib64/ld.so (0x…)`.
fn library_path(line: &str) -> Option<&str> {
    line.split_whitespace().find(|word| word.starts_with('/'))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_says() {
        let rows = [
            ("\tlinux-vdso.so.1 (0x00007ffd)", None),
            (
                "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)",
                Some("/lib/x86_64-linux-gnu/libc.so.6"),
            ),
            ("\t/lib64/ld-linux-x86-64.so.2 (0x7f)", Some("/lib64/ld-linux-x86-64.so.2")),
        ];
        for (line, path) in rows {
            assert_eq!(library_path(line), path, "{line}");
        }
    }
}
