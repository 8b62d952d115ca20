//! Cluster DNS: the protocol core, bytes and time in, bytes out.
