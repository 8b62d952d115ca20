//! What tests are made of: case files and their runner, a node's loop on any kernel, small random
//! worlds, the namespace lab, the cluster simulator, and tests that wait for another kernel.

pub mod agreement;
pub mod backend;
pub mod case;
pub mod emulated;
pub mod lab;
pub mod node;
pub mod objects;
pub mod random;
pub mod sim;
pub mod verdict;
