//! The one program of the toolbox image.
fn main() {}
