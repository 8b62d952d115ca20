//! The HTTP face of the store: durability, authentication, and the driver of controllers.
