//! Deployment, ReplicaSet, EndpointSlice, nodes, scheduling: snapshot and time in, writes out.
