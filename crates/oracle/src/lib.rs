//! The direct reading of the Kubernetes API for one packet, one name, one request.
