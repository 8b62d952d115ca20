//! Programs of others that checks and tests use, kept in `target/tools/`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process;

/// The version of cargo-deny that `deny.toml` is written for.
const CARGO_DENY_VERSION: &str = "0.20.2";
/// The Debian package that holds kubectl 1.20.
const KUBECTL_PACKAGE: &str = "kubernetes-client";
/// What the packaged program must say of itself.
const KUBECTL_VERSION: &str = "v1.20.";

/// The version of the Python client that the cluster tests run. 36.0.0 sends no token from pods: it
/// keeps it by one name and looks for it by another.
const PYTHON_CLIENT_VERSION: &str = "35.0.0";

/// Packages that carry the install manifests of projects, as these publish them: Calico, the cloud
/// controller manager and volume drivers of OpenStack, the NFS volume driver; Dask. By name: as pip
/// takes them.
const PUBLISHED: &[(&str, &str)] = &[
    (
        "magnum_cluster_api",
        "magnum-cluster-api==0.13.3 \
         --hash=sha256:355205d3094739d4ecfbba4316665b0bf227c1e1f7f84c57931fc1e6b0c75153",
    ),
    (
        "dask_kubernetes",
        "dask-kubernetes==2026.3.0 \
         --hash=sha256:5cf138e03cb1851063b82b74e9fd4679251238e3867fcae1e3682aada6410728",
    ),
];

/// What npm installs the JavaScript client from: its versions and checksums.
const NPM_FILES: [&str; 2] = ["package.json", "package-lock.json"];

/// Debian's container runtimes, and those of their libraries that a machine may lack. Unpacked, not
/// installed: an installation would start daemons.
const RUNTIMES: &[&str] = &[
    "containerd",
    "containernetworking-plugins",
    "runc",
    "podman",
    "conmon",
    "crun",
    "libassuan0",
    "libdevmapper1.02.1",
    "libglib2.0-0",
    "libgpgme11",
    "libseccomp2",
    "libsubid4",
    "libyajl2",
];

/// Debian's Unbound, which answers over TLS and HTTPS, and those of its libraries that a machine may
/// lack.
const UNBOUND: &[&str] =
    &["unbound", "libevent-2.1-7", "libexpat1", "libnghttp2-14", "libprotobuf-c1", "libpython3.11"];

/// Debian's musl, to link clients of DNS with, and its systemd-resolved, with those of its libraries
/// that a machine may lack. Unpacked: an installation would change how the machine resolves names.
const RESOLVERS: &[&str] =
    &["musl-dev", "systemd-resolved", "libsystemd-shared", "libip4tc2", "libkmod2", "libssl3"];

/// Where the tools live.
fn directory() -> PathBuf {
    process::root().join("target/tools")
}

/// Installs cargo-deny where cargo installs programs, unless it is there: it takes minutes to
/// build, and serves every checkout of this machine.
///
/// # Errors
/// When it is neither there nor can be installed.
pub fn cargo_deny() -> Result<()> {
    let version = process::output("cargo", &["deny", "--version"]).unwrap_or_default();
    if version.trim().ends_with(CARGO_DENY_VERSION) {
        return Ok(());
    }
    let arguments = ["install", "cargo-deny", "--locked", "--version", CARGO_DENY_VERSION];
    process::run("cargo", &arguments)
        .context("cargo-deny is missing and could not be installed: check the network and retry")
}

/// The command: prints where kubectl 1.20 is, after fetching it when it is not there.
///
/// # Errors
/// When apt cannot fetch the package, or it holds another version.
pub fn kubectl(arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        bail!("kubectl takes no arguments");
    }
    let target = directory().join("kubectl-1.20");
    let program = target.join("usr/bin/kubectl");
    if !program.exists() {
        unpack_to(&[KUBECTL_PACKAGE], &target)?;
    }
    let path = program.display().to_string();
    let version = process::output(&path, &["version", "--client", "--short"])?;
    if !version.contains(KUBECTL_VERSION) {
        bail!(
            "{path} says {:?} instead of {KUBECTL_VERSION}: this release of the distribution \
             packages another version; put a kubectl 1.20 there by hand",
            version.trim()
        );
    }
    println!("{path}");
    Ok(())
}

/// The command: everything of others that the tests use, in `target/tools/`.
///
/// # Errors
/// When something cannot be fetched.
pub fn clients(arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        bail!("clients takes no arguments");
    }
    kubectl(&[])?;
    runtimes(&[])?;
    unbound()?;
    resolvers()?;
    python()?;
    npm()?;
    published()
}

/// The Python client of Kubernetes, in an environment of its own.
///
/// # Errors
/// When Python or its package index is out of reach.
fn python() -> Result<()> {
    let interpreter = interpreter();
    let version = ["-c", "import kubernetes; print(kubernetes.__version__)"];
    let installed = process::output(&interpreter, &version).unwrap_or_default();
    if installed.trim() == PYTHON_CLIENT_VERSION {
        return Ok(());
    }
    let place = directory().join("python").display().to_string();
    process::run("python3", &["-m", "venv", "--clear", &place])
        .context("making a Python environment (package python3-venv)")?;
    let client = format!("kubernetes=={PYTHON_CLIENT_VERSION}");
    let install = ["-m", "pip", "install", "--quiet", &client];
    process::run(&interpreter, &install)
        .context("installing the Python client: check the network and retry")
}

/// The Python of that environment. It has pip, which a machine's own may lack.
fn interpreter() -> String {
    directory().join("python/bin/python3").display().to_string()
}

/// The JavaScript client of Kubernetes, with what it needs, in `target/tools/npm`. No script of a
/// package is run.
///
/// # Errors
/// When npm or its registry is out of reach.
fn npm() -> Result<()> {
    let target = directory().join("npm");
    let source = process::root().join("crates/e2e/tests/data/npm");
    let is_there = target.join("node_modules/.package-lock.json").exists()
        && NPM_FILES.iter().all(|name| {
            let text = std::fs::read(source.join(name));
            text.is_ok_and(|text| std::fs::read(target.join(name)).is_ok_and(|old| old == text))
        });
    if is_there {
        return Ok(());
    }
    install("npm", &["nodejs", "npm"])?;
    std::fs::create_dir_all(&target)?;
    for name in NPM_FILES {
        std::fs::copy(source.join(name), target.join(name))?;
    }
    let place = target.display().to_string();
    let call = ["ci", "--prefix", &place, "--ignore-scripts", "--no-audit", "--no-fund"];
    process::run("npm", &call)
        .context("installing the JavaScript client: check the network and retry")
}

/// Manifests that projects publish, below `target/tools/published`, by the name of the package that
/// carries them. After [`python`].
///
/// # Errors
/// When the package index is out of reach, or has other bytes than we know.
fn published() -> Result<()> {
    for (name, requirement) in PUBLISHED {
        let target = directory().join("published").join(name);
        if !target.exists() {
            unpack_wheel(requirement, &target)
                .with_context(|| format!("fetching the manifests in {name}"))?;
        }
    }
    Ok(())
}

/// Nothing of the package is installed or run.
fn unpack_wheel(requirement: &str, target: &Path) -> Result<()> {
    let work = target.with_extension("download");
    if work.exists() {
        std::fs::remove_dir_all(&work)?;
    }
    std::fs::create_dir_all(&work)?;
    let requirements = work.join("requirements.txt");
    std::fs::write(&requirements, requirement)?;
    let (file, place) = (requirements.display().to_string(), work.display().to_string());
    let mut call = vec!["-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"];
    call.extend(["--only-binary=:all:", "--dest", &place, "--requirement", &file]);
    let interpreter = interpreter();
    process::run(&interpreter, &call).context("check the network and retry")?;
    for wheel in crate::source::files(&work, ".whl")? {
        let from = wheel.display().to_string();
        let unpacked = work.join("unpacked").display().to_string();
        process::run(&interpreter, &["-m", "zipfile", "-e", &from, &unpacked])?;
    }
    std::fs::rename(work.join("unpacked"), target)
        .with_context(|| format!("cannot move the package to {}", target.display()))?;
    std::fs::remove_dir_all(&work)?;
    Ok(())
}

/// Unpacks a Debian package into a directory below `target/tools/`, unless it is there; answers
/// the directory. Nothing is installed.
///
/// # Errors
/// When apt cannot fetch the package.
pub fn unpack(package: &str) -> Result<PathBuf> {
    let target = directory().join(package);
    if !target.exists() {
        unpack_to(&[package], &target)?;
    }
    Ok(target)
}

/// Installs Debian packages of programs that only work in their place, when `program` is missing.
///
/// # Errors
/// When apt cannot install them.
pub fn install(program: &str, packages: &[&str]) -> Result<()> {
    let places = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    if places.iter().any(|place| Path::new(place).join(program).exists()) {
        return Ok(());
    }
    let mut call = vec!["install", "-y", "-qq", "--no-install-recommends"];
    call.extend(packages);
    with_fresh_lists(&call, Path::new("/"))
        .with_context(|| format!("{program} is missing; it comes with {}", packages.join(", ")))
}

/// The command: container runtimes of others in `target/tools/runtimes`, for the tests under them.
///
/// # Errors
/// When apt cannot fetch a package.
pub fn runtimes(arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        bail!("runtimes takes no arguments");
    }
    let target = directory().join("runtimes");
    if !target.exists() {
        unpack_to(RUNTIMES, &target)?;
    }
    println!("{}", target.display());
    Ok(())
}

/// Unbound in `target/tools/unbound`: a foreign server for tests of encrypted DNS, and a peer of
/// benchmarks.
///
/// # Errors
/// When apt cannot fetch a package.
pub fn unbound() -> Result<()> {
    let target = directory().join("unbound");
    if target.exists() { Ok(()) } else { unpack_to(UNBOUND, &target) }
}

/// The resolvers of others in `target/tools/resolvers`, as clients of the tests.
///
/// # Errors
/// When apt cannot fetch a package.
fn resolvers() -> Result<()> {
    let target = directory().join("resolvers");
    if target.exists() { Ok(()) } else { unpack_to(RESOLVERS, &target) }
}

fn unpack_to(packages: &[&str], target: &Path) -> Result<()> {
    let mut work = target.as_os_str().to_owned();
    work.push("-download");
    let work = PathBuf::from(work);
    // Half fetched packages of an earlier, interrupted run.
    if work.exists() {
        std::fs::remove_dir_all(&work)?;
    }
    std::fs::create_dir_all(&work)?;
    let mut call = vec!["download"];
    call.extend(packages);
    with_fresh_lists(&call, &work)?;
    let archives = crate::source::files(&work, ".deb")?;
    if archives.len() != packages.len() {
        bail!("apt-get downloaded {} packages of {}", archives.len(), packages.join(", "));
    }
    let unpacked = work.join("unpacked");
    for archive in archives {
        let from = archive.display().to_string();
        process::run("dpkg-deb", &["-x", &from, &unpacked.display().to_string()])?;
    }
    std::fs::rename(&unpacked, target)
        .with_context(|| format!("cannot move the packages to {}", target.display()))?;
    std::fs::remove_dir_all(&work)?;
    Ok(())
}

/// Runs apt-get; once more after an update, since a list of packages that is missing or old names
/// files that are not there.
fn with_fresh_lists(arguments: &[&str], directory: &Path) -> Result<()> {
    if apt_get(arguments, directory)? {
        return Ok(());
    }
    apt_get(&["update", "-qq"], directory)?;
    if apt_get(arguments, directory)? {
        return Ok(());
    }
    bail!(
        "`apt-get {}` failed: check the network, and that this release of the distribution has \
         the package (these are of Debian 12)",
        arguments.join(" ")
    )
}

fn apt_get(arguments: &[&str], directory: &Path) -> Result<bool> {
    let status = std::process::Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .current_dir(directory)
        .status()
        .context("cannot start apt-get: the tools of these tests are Debian's packages")?;
    Ok(status.success())
}
