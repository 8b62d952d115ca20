//! Case runner, packet builders, namespace lab and cluster simulator.
