//! What is stored of a rollout, and what a store that cannot take it holds up.

use super::*;

#[test]
fn what_is_told_twice_under_one_id_is_done_once() {
    let rig = with_signals();
    let of = |id: &str| WriteContext {
        request_id: id.into(),
        ..context()
    };
    let json = r#"{"strategy":"canary","steps":["10%","pause","50%","pause"],"interval":"1s"}"#;
    let begin = StartRollout {
        service: "web".into(),
        spec: Some(json.into()),
    };
    let begun = rig.reconciler.start_rollout(&begin, &of("a")).unwrap();
    let again = rig.reconciler.start_rollout(&begin, &of("a")).unwrap();
    assert_eq!(begun.id, again.id);
    pass(&rig, 3);
    let advance = |id| {
        let told = rig
            .reconciler
            .command_rollout("web", RolloutCommand::Advance, &of(id));
        told.unwrap().step
    };
    let first = advance("b");
    pass(&rig, 3);
    let second = view(&rig).step;
    assert!(second >= first);
    assert_eq!(advance("b"), second);
    assert_eq!(rig.green(), "50%");
    assert!(advance("c") > second);
}

#[test]
fn one_that_cannot_be_read_is_closed_and_in_nobodys_way() {
    let mut rig = with_signals();
    let id = start(&rig, CANARY).unwrap().id;
    let progress = Progress {
        id,
        state: "{",
        at_unix_ms: 1,
        outcome: None,
        notes: &[],
        windows: &[],
    };
    let moved = lock(&rig.reconciler.core).store.move_rollout(&progress);
    moved.unwrap();
    rig.restart();
    assert_eq!((view(&rig).id, view(&rig).state.as_str()), (id, "lost"));
    assert!(view(&rig).is_over);
    rig.rollback(0).unwrap();
    let next = start(&rig, CANARY).unwrap();
    assert_eq!(rig.reconciler.rollouts("", 10).unwrap().len(), 2);
    rig.restart();
    assert_eq!(view(&rig).id, next.id, "it is not taken up again");
    let core = lock(&rig.reconciler.core);
    assert!(
        !core.warnings.iter().any(|w| w.contains("cannot go on")),
        "{:?}",
        core.warnings
    );
}

#[test]
fn one_whose_service_is_deleted_at_its_end_has_its_report_too() {
    let rig = with_signals();
    let id = start(&rig, CANARY).unwrap().id;
    tell(&rig, RolloutCommand::Abort).unwrap();
    rig.reconciler.delete("web", &context()).unwrap();
    pass(&rig, 2);
    let row = lock(&rig.reconciler.core).store.rollout(id).unwrap();
    assert!(row.unwrap().report.is_some());
    rig.apply(&[web()]).unwrap();
    start(&rig, CANARY).unwrap();
}

#[test]
fn a_full_disk_holds_a_rollout_and_never_its_way_back() {
    let rig = with_signals();
    start(&rig, CANARY).unwrap();
    pass(&rig, 2);
    rig.disk_full(true);
    pass(&rig, 20);
    assert_eq!(rig.green(), "10%", "it stays where it is");
    tell(&rig, RolloutCommand::Abort).unwrap();
    assert_eq!(rig.green(), "0%");
    rig.disk_full(false);
    pass(&rig, 15);
    assert_eq!(view(&rig).state, "rolled back");
    rig.reconciler
        .rollout_report("web", 0, ReportFormat::Markdown)
        .unwrap();
}
