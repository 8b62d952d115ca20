//! Pods of the embedded nodes: sandbox, containers, images, probes, logs, exec.
