//! The Kubernetes API client of all our programs.
