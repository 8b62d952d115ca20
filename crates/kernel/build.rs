//! Compiles the eBPF programs below `bpf/` with clang, against the header that `ebpf-abi` writes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// One object file each.
const PROGRAMS: [&str; 6] =
    ["forward", "names", "socket_services", "sockets", "service_nat", "service_xdp"];

fn main() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bpf");
    let target = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo:rerun-if-changed={}", source.display());
    fs::write(target.join("abi.h"), ebpf_abi::c_header()).expect("write the header of the maps");
    for program in PROGRAMS {
        compile(&source.join(format!("{program}.c")), &target);
    }
}

fn compile(source: &Path, target: &Path) {
    let name = source.file_stem().expect("a file name").to_string_lossy();
    let mut clang = Command::new("clang");
    // `-mcpu=v3` is what Linux 5.1 and later run; `-g` is for the maps' declarations.
    clang.args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-c", "-Wall", "-Wextra", "-Werror"]);
    // Paths of the building machine stay out of the debug information.
    clang.arg(format!("-ffile-prefix-map={}=bpf", source.parent().unwrap_or(target).display()));
    clang.arg("-I").arg(target).arg(source).arg("-o").arg(target.join(format!("{name}.o")));
    let status = clang.status().unwrap_or_else(|error| {
        panic!("clang compiles the eBPF programs and cannot be started ({error}): install the package clang, version 14 or later")
    });
    assert!(status.success(), "clang cannot compile {}: see its errors above", source.display());
}
