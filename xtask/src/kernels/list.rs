//! Which kernels are booted, what runs there, and what it needs: the one place.

/// A kernel series, newest patch level that apt offers.
pub struct Kernel {
    /// As the summary shows it.
    pub name: &'static str,
    /// The numbers that its packages' versions begin with.
    pub series: &'static [u32],
    /// Tests that cannot hold there, with the reason.
    pub cannot: &'static [(&'static str, &'static str)],
}

/// Debian's, oldest first: the oldest that the agent supports, without tcx,
/// and one with it.
pub const KERNELS: [Kernel; 2] = [
    Kernel {
        name: "Linux 6.1",
        series: &[6, 1],
        cannot: &[
            (
                "programs_that_were_taken_off_by_hand_are_put_back_under_tc",
                "tc programs are filters of clsact there (tcx needs 6.6), which have no link to detach",
            ),
            (
                "programs_that_were_taken_off_by_hand_are_put_back_under_xdp",
                "it detaches the link of the egress program as well, which is a filter of clsact there",
            ),
            (
                "filters_in_clsact_are_replaced_in_place_and_go_with_detach",
                "it moves from clsact to tcx and back, and tcx needs 6.6",
            ),
        ],
    },
    Kernel {
        name: "Linux 6.12",
        series: &[6, 12],
        cannot: &[],
    },
];

/// A program of `shifter-tests`, and which of its tests run.
pub struct Suite {
    pub name: &'static str,
    /// At a time: loading is most of the time of a packet table; what measures
    /// time itself runs alone.
    pub threads: u32,
    pub tests: &'static [&'static str],
    /// What `--long` runs besides.
    pub long: Long,
}

/// What `--long` adds to a suite. Counts stay short: an emulated CPU is ten
/// times slower.
pub enum Long {
    /// All its other tests.
    Rest,
    /// These.
    Some(&'static [&'static str]),
}

/// Loading the programs takes some eight seconds in an emulated CPU, so of the
/// packet tables those run that reach every helper and every way out.
pub const SUITES: [Suite; 4] = [
    Suite {
        name: "packets",
        threads: 2,
        tests: &[
            "cohorts::cohorts_move_no_flow_that_is_pinned_and_take_over_none_in_mid_stream",
            "flows::what_is_taken_over_goes_to_the_live_pool",
            "icmp::errors_from_the_backends_side_reach_the_client",
            "icmp::errors_from_the_clients_side_reach_the_backend",
            "nat::every_family_and_protocol_goes_to_its_backend_and_back",
            "nat::options_extension_headers_and_tags_change_nothing_about_it",
            "nat::replies_of_neighbours_are_redirected_where_the_client_is_known",
            "other::fragments_pass_and_those_to_a_vip_are_counted",
            "signals::a_breaker_sends_no_new_flow_to_the_candidate_until_the_next_record",
            "signals::resets_are_told_apart_under_both_hooks",
            "wire::a_tag_that_lies_beside_the_frame_keeps_it_from_being_redirected",
        ],
        long: Long::Rest,
    },
    Suite {
        name: "hooks",
        threads: 1,
        tests: &["filters_of_others_in_clsact_stay_and_ours_are_put_back_beside_them"],
        long: Long::Some(&[
            "programs_that_were_taken_off_by_hand_are_put_back_under_tc",
            "programs_that_were_taken_off_by_hand_are_put_back_under_xdp",
        ]),
    },
    // A restart replaces the programs in place, as an upgrade does.
    Suite {
        name: "lifecycle",
        threads: 1,
        tests: &[
            "flows_outlive_a_killed_and_a_stopped_agent_under_tc",
            "flows_outlive_a_killed_and_a_stopped_agent_under_xdp",
        ],
        long: Long::Some(&[
            "a_dead_man_takes_the_weight_back_even_without_an_agent",
            "a_weight_changed_before_a_kill_is_there_after_it",
            "filters_in_clsact_are_replaced_in_place_and_go_with_detach",
        ]),
    },
    // The later layout has an agent of its own, which is not in the guest. Each loads
    // its programs three times.
    Suite {
        name: "migration",
        threads: 1,
        tests: &[],
        long: Long::Some(&[
            "no_flow_notices_another_size_under_tc",
            "no_flow_notices_another_size_under_xdp",
        ]),
    },
];

/// Programs that these tests call, by the names of [`crate::pins`]' packages,
/// and `tc`, which comes with `ip`.
pub const PROGRAMS: [&str; 5] = ["ip", "tc", "ethtool", "nft", "bpftool"];

/// Programs of this workspace that they start.
pub const BUILT: [&str; 2] = ["shifter", "traffic"];

/// Modules that the labs and the agent use; their dependencies are found.
pub const MODULES: [&str; 9] = [
    "veth",
    "bridge",
    "sch_ingress",
    "cls_bpf",
    "tcp_diag",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
];

/// What the guest's kernel is told. Emulated, it is a third faster without what
/// protects against others on the same CPU, nobody being there, and a slow
/// emulation is not a stalled CPU.
pub const KERNEL_ARGUMENTS: &str = "console=ttyS0 loglevel=5 panic=-1 oops=panic nowatchdog rcupdate.rcu_cpu_stall_suppress=1 \
    mitigations=off init_on_alloc=0 audit=0 apparmor=0 nokaslr";

/// What the guest's CPU is: `rep movsb` and five-level page tables, which the
/// kernel would prefer, are the slowest that the emulation knows.
pub const CPU: &str = "max,la57=off,erms=off";

/// Memory of the guest in MiB.
pub const MEMORY_MIB: u32 = 2_048;

/// CPUs of the guest.
pub const CPUS: u32 = 2;

/// How long a boot with its tests may take, in seconds: short, and with `--long`.
pub const LIMIT_S: [u32; 2] = [700, 2_100];
