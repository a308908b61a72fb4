//! Build, test, demo and tidy.
fn main() {}
