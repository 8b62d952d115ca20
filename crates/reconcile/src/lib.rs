//! The node's loop as a state machine: events and time in, operations out.
