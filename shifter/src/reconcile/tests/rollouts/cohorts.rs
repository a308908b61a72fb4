//! Cohorts that a rollout puts in force.

use super::*;

#[test]
fn cohorts_of_a_rollout_come_first_only_to_a_pool_that_is_up() {
    let rig = Rig::new();
    let mut spec = specs(
        "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
         pools = { blue = [\"10.0.0.1:8443\"], green = [\"10.0.1.1:8443\"] }\n\
         health = { type = \"tcp\" }\n\
         [[service.cohort]]\nname = \"staff\"\nprefixes = [\"10.1.0.0/16\"]\n",
    );
    rig.apply(&[spec.remove(0)]).unwrap();
    rig.rollback(0).unwrap();
    let green = "10.0.1.1:8443".parse().unwrap();
    assert!(rig.reconciler.settle("web", &[green].into()));
    start(&rig, r#"{"strategy":"cohort-first","lease":"30s"}"#).unwrap();
    pass(&rig, 3);
    assert!(!rig.reconciler.get("web").unwrap().spec.cohorts_on);
    assert!(
        view(&rig).why.contains("the clients of cohort \"staff\""),
        "{}",
        view(&rig).why
    );
    assert!(rig.reconciler.settle("web", &Default::default()));
    pass(&rig, 3);
    assert!(rig.reconciler.get("web").unwrap().spec.cohorts_on);
}

#[test]
fn an_experiment_on_cohorts_alone_puts_them_in_force_and_takes_them_out_again() {
    let rig = Rig::new();
    let mut spec = specs(
        "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
         pools = { blue = [\"10.0.0.1:8443\"], green = [\"10.0.1.1:8443\"] }\n\
         [[service.cohort]]\nname = \"staff\"\nprefixes = [\"10.1.0.0/16\"]\n",
    );
    rig.apply(&[spec.remove(0)]).unwrap();
    rig.rollback(0).unwrap();
    start(&rig, r#"{"strategy":"ab","duration":"5s","lease":"30s"}"#).unwrap();
    pass(&rig, 2);
    let during = rig.reconciler.get("web").unwrap();
    assert!(during.spec.cohorts_on && during.dead_man.is_some());
    assert_eq!(rig.green(), "0%");
    pass(&rig, 10);
    assert_eq!(view(&rig).state, "completed");
    let after = rig.reconciler.get("web").unwrap();
    assert!(!after.spec.cohorts_on && after.dead_man.is_none());
    assert_eq!(rig.green(), "0%");
}
