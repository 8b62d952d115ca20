//! The DNS zone of the cluster.
