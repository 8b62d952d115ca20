//! Synchronous rtnetlink: links, addresses, routes, neighbours, namespaces.
