//! Metrics of interfaces and of what runs there.

use super::text::{Kind::Gauge, Page};
use crate::{datapath::ProgramState, reconcile::controller::InfoView};

/// Whether they are up, and whether the kernel runs our programs there.
pub(super) fn families(page: &mut Page, info: &InfoView) {
    let mut family = page.family(
        "shifter_interface_up",
        Gauge,
        "Whether an interface with a hook is up.",
    );
    for hook in &info.hooks {
        let labels = [
            ("interface", hook.interface.as_str()),
            ("hook", &hook.hook),
            ("egress", &hook.egress),
        ];
        family.sample(&labels, u8::from(hook.up));
    }
    let mut family = page.family(
        "shifter_interface_program_in_force",
        Gauge,
        "1 where the kernel says that this agent's program is attached.",
    );
    for hook in &info.hooks {
        for direction in ["ingress", "egress"] {
            let in_force = hook.programs.iter().any(|program| {
                program.direction == direction && program.state == ProgramState::Ours
            });
            let labels = [
                ("interface", hook.interface.as_str()),
                ("direction", direction),
            ];
            family.sample(&labels, u8::from(in_force));
        }
    }
}
