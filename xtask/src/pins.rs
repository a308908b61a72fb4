//! Every version the build is pinned to, and every package it installs.
//!
//! docs/toolchain.md shows [`TABLE`]; `cargo xtask tidy` compares the two, and
//! the pins with Cargo.toml and the build script.

/// Oldest stable compiler that builds the workspace.
pub const RUST: &str = "1.95";
/// The LLVM that bpf-linker is built on. It cannot read what a newer one wrote.
pub const LLVM: u32 = 22;
/// The nightly that is installed for the eBPF object. Not the newest: that one
/// has LLVM 23 (that of 2026-10-30: bpf-linker ends with "Invalid record").
pub const NIGHTLY: &str = "nightly-2026-05-20";
/// Taken in place of [`NIGHTLY`] where it is installed already and its LLVM is old enough.
pub const ANY_NIGHTLY: &str = "nightly";
/// The linker of the bpf target.
pub const BPF_LINKER: &str = "0.13.0";
/// The feature of bpf-linker that chooses [`LLVM`].
pub const BPF_LINKER_FEATURE: &str = "llvm-22";
/// Where Debian puts [`LLVM`].
pub const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
/// How llvm-sys is told of [`LLVM_PREFIX`]; the number is its own version.
pub const LLVM_SYS_PREFIX: &str = "LLVM_SYS_221_PREFIX";
/// The Debian release that packages are installed on.
pub const DEBIAN: &str = "12";
/// What debootstrap calls it.
pub const DEBIAN_NAME: &str = "bookworm";
/// What `cargo xtask dist` builds for.
pub const MUSL_TARGET: &str = "x86_64-unknown-linux-musl";

/// One row of the table in docs/toolchain.md.
pub struct Pin {
    pub name: &'static str,
    pub version: &'static str,
    pub why: &'static str,
}

/// What is pinned, and why just there.
pub const TABLE: [Pin; 7] = [
    Pin {
        name: "Rust, stable",
        version: RUST,
        why: "the oldest that builds the workspace; newer ones do too",
    },
    Pin {
        name: "Rust, nightly",
        version: NIGHTLY,
        why: "the bpf target needs `-Z build-std`; an installed `nightly` is taken where its LLVM is 22 or older",
    },
    Pin {
        name: "LLVM",
        version: "22",
        why: "what bpf-linker is built on, and the newest that Debian 12 has; it cannot read what a nightly with LLVM 23 writes",
    },
    Pin {
        name: "bpf-linker",
        version: BPF_LINKER,
        why: "links the eBPF object; built from source on that LLVM",
    },
    Pin {
        name: "aya",
        version: "0.14.0",
        why: "the newest that Rust 1.95 builds",
    },
    Pin {
        name: "aya-ebpf",
        version: "0.2.1",
        why: "belongs to aya 0.14",
    },
    Pin {
        name: "Debian",
        version: DEBIAN,
        why: "where packages are installed for you; elsewhere their names are printed",
    },
];

/// A package, the program by which its presence is told, and what it is for.
pub struct Package {
    pub program: &'static str,
    pub name: &'static str,
    pub why: &'static str,
}

/// Needed to build bpf-linker, and only then.
pub const LLVM_PACKAGES: [&str; 5] = [
    "llvm-22-dev",
    "libpolly-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
    "g++",
];

/// The demo's.
pub const DEMO_PACKAGES: [Package; 2] = [
    Package {
        program: "ip",
        name: "iproute2",
        why: "network namespaces",
    },
    Package {
        program: "ethtool",
        name: "ethtool",
        why: "offloads of the client's interface",
    },
];

/// The scenarios' besides the demo's.
pub const TEST_PACKAGES: [Package; 9] = [
    Package {
        program: "nginx",
        name: "nginx-light",
        why: "a real web server",
    },
    Package {
        program: "wrk",
        name: "wrk",
        why: "load on it",
    },
    Package {
        program: "redis-server",
        name: "redis-server",
        why: "a real database",
    },
    Package {
        program: "nft",
        name: "nftables",
        why: "the rules of container engines",
    },
    Package {
        program: "prometheus",
        name: "prometheus",
        why: "a real scraper of the metrics",
    },
    Package {
        program: "bpftool",
        name: "bpftool",
        why: "what is loaded, by another's eyes",
    },
    Package {
        program: "systemd-analyze",
        name: "systemd",
        why: "judges the unit",
    },
    Package {
        program: "strace",
        name: "strace",
        why: "the system calls that the unit has to allow",
    },
    Package {
        program: "openssl",
        name: "openssl",
        why: "certificates of servers that are checked",
    },
];

/// What `cargo xtask dist` calls.
pub const DIST_PACKAGES: [Package; 2] = [
    Package {
        program: "musl-gcc",
        name: "musl-tools",
        why: "SQLite in the static binary",
    },
    Package {
        program: "debootstrap",
        name: "debootstrap",
        why: "a Debian root to try the package in",
    },
];

/// What the bench compares with, besides the scenarios' packages.
pub const BENCH_PACKAGES: [Package; 2] = [
    Package {
        program: "haproxy",
        name: "haproxy",
        why: "a proxy to compare with",
    },
    Package {
        program: "iperf3",
        name: "iperf3",
        why: "bulk transfers",
    },
];

/// What boots other kernels, besides what the tests there call.
pub const KERNEL_PACKAGES: [Package; 5] = [
    Package {
        program: "qemu-system-x86_64",
        name: "qemu-system-x86",
        why: "the machine that other kernels boot on",
    },
    Package {
        program: "busybox",
        name: "busybox-static",
        why: "a shell for the guest",
    },
    Package {
        program: "depmod",
        name: "kmod",
        why: "what the guest's kernel modules need",
    },
    Package {
        program: "xz",
        name: "xz-utils",
        why: "unpacks modules",
    },
    Package {
        program: "strip",
        name: "binutils",
        why: "makes test programs small",
    },
];
