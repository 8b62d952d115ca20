//! The protocol between a node's runtime and the pause process of each pod. The process itself is
//! the program `flatnet-pause` of this package: it must stay small, so it links no async code.

mod protocol;
pub mod terminal;

pub use protocol::{
    Bind, ContainerReport, ContainerSpec, ExecSpec, Exit, MAX_MESSAGE_BYTES, Overlay,
    ProcessNamespace, Request, Response, SandboxSpec,
};
