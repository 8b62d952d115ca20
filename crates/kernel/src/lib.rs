//! The only writer of Linux network state beyond a pod's own link.

pub mod net;
