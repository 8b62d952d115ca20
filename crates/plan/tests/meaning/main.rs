//! What Services mean, by tables: each packet is asked of the oracle and of the plan, and both must
//! say what the row says. The tables restate kube-proxy's own scenarios; every row is taken in both
//! families.

mod dual_stack;
mod load_balancers;
mod masquerade;
mod node_ports;
mod of_plan;
mod opt_out;
mod port_ranges;
mod random;
mod scenario;
mod terminating;
mod topology;
mod weights;
