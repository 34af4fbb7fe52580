//! Rust: a crate that is built and tested inside the mount.

use super::shell::sh;
use super::support::Cluster;

/// A library, a program, a build script, and tests; it depends on nothing.
const MAKE: &str = r#"
    mkdir -p crate/src crate/tests; cd crate
    cat > Cargo.toml <<'END'
[package]
name = "numbers"
version = "0.1.0"
edition = "2021"
[workspace]
END
    cat > build.rs <<'END'
fn main() {
    let file = std::path::Path::new(&std::env::var("OUT_DIR").unwrap()).join("made.rs");
    std::fs::write(file, "pub const MADE: u64 = 40;").unwrap();
    println!("cargo:rerun-if-changed=build.rs");
}
END
    for module in $(seq 60); do
        echo "pub fn number() -> u64 { $module }" > src/m$module.rs
        echo "pub mod m$module;" >> src/lib.rs
    done
    echo 'include!(concat!(env!("OUT_DIR"), "/made.rs"));' >> src/lib.rs
    echo 'fn main() { println!("{}", numbers::MADE + numbers::m2::number()); }' > src/main.rs
    echo '#[test] fn sum() { assert_eq!(numbers::MADE + numbers::m9::number(), 49); }' > tests/sum.rs
"#;

#[test]
#[ignore = "long"]
fn a_crate_is_built_in_the_mount() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1), cluster.mount(2));
    sh(&here, MAKE, &[]);
    let build = "cd crate; cargo build --offline 2>&1; cargo test --offline 2>&1";
    let said = sh(&here, build, &[]);
    assert!(said.contains("test sum ... ok"), "{said}");
    // The program runs from wherever it is seen.
    let run = "crate/target/debug/numbers";
    assert_eq!(sh(&there, run, &[]), "42\n");
    let again = sh(&here, "cd crate; cargo build --offline 2>&1", &[]);
    assert!(!again.contains("Compiling"), "nothing has changed: {again}");
    // A change that another mount makes is noticed, and built incrementally.
    sh(&there, "echo 'pub fn number() -> u64 { 3 }' > crate/src/m2.rs", &[]);
    let again = sh(&here, "cd crate; cargo build --offline 2>&1", &[]);
    assert!(again.contains("Compiling numbers"), "{again}");
    for node in 1..=3 {
        assert_eq!(sh(&cluster.mount(node), run, &[]), "43\n");
    }
    let release = "cd crate; cargo build --offline --release 2>&1; target/release/numbers";
    assert!(sh(&here, release, &[]).ends_with("43\n"));
    sh(&here, "cd crate; cargo clean 2>&1; ! [ -e target ]", &[]);
    cluster.settle();
}
