//! Every developer command, behind `./x`.
fn main() {}
