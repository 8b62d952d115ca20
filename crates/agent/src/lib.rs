//! The node agent: API watch, kernel, health; drives reconcile.
