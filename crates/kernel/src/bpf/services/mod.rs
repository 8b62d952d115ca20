//! Services in eBPF: the maps that the programs at the socket (`bpf/socket_services.c`) and those
//! that see each packet (`bpf/service_nat.c`) share.

use std::path::{Path, PathBuf};

/// Where the maps of Services are pinned, of this layout: the loader of any program that includes
/// `bpf/services.h` gives this as its directory of pins.
pub fn maps_directory(file_system: &Path) -> PathBuf {
    let version = format!("services-v{}", ebpf_abi::services::SERVICES_VERSION);
    file_system.join("flatnet").join(version).join("maps")
}
