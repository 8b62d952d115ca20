//! flatnet: the commands.
fn main() {}
