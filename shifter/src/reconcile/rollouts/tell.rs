//! Webhooks that are told of a rollout: of what happens in it, and of its end.
//!
//! What is to be told waits in a short queue for each of them and is handed out with
//! the next round. Nothing waits for an answer but the report, and that not for long.

use std::collections::{BTreeMap, VecDeque};

use super::Rollout;
use crate::{
    judge::{GateSpec, HookType, Judge},
    reconcile::reconciler::{Core, Reconciler, lock},
    rollout::{Happened, Note},
};

/// News that may wait for one webhook.
const MOST: usize = 64;
/// A report waits so long for webhooks that are still told.
const WAIT_NS: u64 = 10_000_000_000;

/// Something that has happened, with how the rollout was then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct News {
    pub happened: Happened,
    pub step: usize,
    pub weight: String,
    pub phase: String,
    pub candidate: String,
}

/// What one webhook is to be told, in its order.
#[derive(Clone, Debug)]
pub struct Tell {
    pub service: String,
    pub rollout: u64,
    pub gate: usize,
    pub spec: GateSpec,
    pub news: Vec<News>,
}

/// What waits to be told.
#[derive(Default)]
pub(super) struct Told {
    queues: BTreeMap<usize, Queue>,
    /// When the end was told of, CLOCK_MONOTONIC in ns.
    over_ns: Option<u64>,
}

#[derive(Default)]
struct Queue {
    news: VecDeque<News>,
    /// Some of it is under way.
    running: bool,
    /// Had no room.
    lost: usize,
}

impl Told {
    /// Takes in what has happened, for the webhooks that want to know.
    fn hear(&mut self, gates: &[GateSpec], news: &News) {
        let wanted = gates.iter().enumerate();
        for (gate, _) in wanted.filter(|(_, gate)| wants(gate, &news.happened.kind)) {
            let queue = self.queues.entry(gate).or_default();
            match queue.news.len() < MOST {
                true => queue.news.push_back(news.clone()),
                false => queue.lost += 1,
            }
        }
    }

    /// What can be handed out now, by webhook.
    fn take(&mut self) -> Vec<(usize, Vec<News>)> {
        let ready = self.queues.iter_mut();
        let ready = ready.filter(|(_, queue)| !queue.running && !queue.news.is_empty());
        ready
            .map(|(gate, queue)| {
                queue.running = true;
                (*gate, queue.news.drain(..).collect())
            })
            .collect()
    }

    /// Webhooks of which news had no room, and how many.
    fn take_lost(&mut self) -> Vec<(usize, usize)> {
        let lost = self.queues.iter_mut().filter(|(_, queue)| queue.lost > 0);
        lost.map(|(gate, queue)| (*gate, std::mem::take(&mut queue.lost)))
            .collect()
    }

    /// Webhooks that are told too late for the report, and of how much.
    fn take_left(&mut self) -> Vec<(usize, usize)> {
        let queues = std::mem::take(&mut self.queues).into_iter();
        let left = queues.map(|(gate, it)| (gate, it.news.len() + usize::from(it.running)));
        left.filter(|(_, left)| *left > 0).collect()
    }

    fn end(&mut self, gate: usize) {
        if let Some(queue) = self.queues.get_mut(&gate) {
            queue.running = false;
        }
    }

    /// It was handed out and not begun.
    pub(super) fn put_back(&mut self, tell: Tell) {
        let queue = self.queues.entry(tell.gate).or_default();
        queue.running = false;
        for news in tell.news.into_iter().rev() {
            queue.news.push_front(news);
        }
    }

    /// Nobody waits for an answer any more.
    pub(super) fn forget_running(&mut self) {
        for queue in self.queues.values_mut() {
            queue.running = false;
        }
    }

    /// Whether a report has to wait for what is under way.
    pub(super) fn delays(&self, now_ns: u64) -> bool {
        let is_busy = |queue: &Queue| queue.running || !queue.news.is_empty();
        let since_ns = self.over_ns.map(|over_ns| now_ns.saturating_sub(over_ns));
        since_ns.is_some_and(|since_ns| since_ns < WAIT_NS) && self.queues.values().any(is_busy)
    }
}

/// Whether a gate is a webhook that is told of this kind.
fn wants(gate: &GateSpec, kind: &str) -> bool {
    let Judge::Webhook(webhook) = &gate.judge else {
        return false;
    };
    match webhook.hook {
        HookType::Event => true,
        HookType::PostRollout => kind == "over",
        _ => false,
    }
}

impl Rollout {
    /// Has webhooks told of what has happened. `now_ns`: CLOCK_MONOTONIC.
    pub(super) fn hear(&mut self, note: &Note, at_unix_ms: i64, now_ns: u64) {
        let news = News {
            happened: Happened {
                at_unix_ms,
                kind: note.kind.to_owned(),
                text: note.text.clone(),
            },
            step: self.state.step,
            weight: self.state.weight.to_string(),
            phase: self.state.word().to_owned(),
            candidate: self.plan.candidate.to_string(),
        };
        if note.kind == "over" {
            self.told.over_ns = Some(now_ns);
        }
        self.told.hear(&self.spec.gates, &news);
    }

    /// Its report is made now, whoever has not answered yet.
    pub(super) fn stop_telling(&mut self, at_unix_ms: i64) {
        for (gate, left) in self.told.take_left() {
            let why = format!("no answer yet when the report was made, {left} left to be told");
            self.note_not_told(gate, at_unix_ms, &why);
        }
    }

    /// A line of its history that nobody is told of.
    fn note_not_told(&mut self, gate: usize, at_unix_ms: i64, why: &str) {
        let name = self.spec.gates.get(gate).map(|gate| gate.name.as_str());
        let text = format!("webhook {:?}: {why}", name.unwrap_or_default());
        tracing::warn!(rollout = self.id, "not told: {text}");
        self.late.push(Happened {
            at_unix_ms,
            kind: "not told".to_owned(),
            text,
        });
    }
}

impl Reconciler {
    /// Hands out what webhooks of a rollout are to be told.
    pub(super) fn collect_tells(&self, core: &mut Core, name: &str) {
        let at_unix_ms = self.clock.unix_ms();
        let Some(rollout) = core.rollouts.get_mut(name) else {
            return;
        };
        for (gate, lost) in rollout.told.take_lost() {
            let why = format!("{lost} of its news had no room, because {MOST} waited already");
            rollout.note_not_told(gate, at_unix_ms, &why);
        }
        for (gate, news) in rollout.told.take() {
            let Some(spec) = rollout.spec.gates.get(gate) else {
                continue;
            };
            lock(&self.rollout_work).tells.push(Tell {
                service: name.to_owned(),
                rollout: rollout.id,
                gate,
                spec: spec.clone(),
                news,
            });
        }
    }

    /// A webhook was told, or was not.
    pub fn rollout_told(&self, tell: &Tell, result: Result<(), String>) {
        let at_unix_ms = self.clock.unix_ms();
        let mut core = lock(&self.core);
        let rollout = core.rollouts.get_mut(&tell.service);
        match (rollout.filter(|r| r.id == tell.rollout), result) {
            (Some(rollout), result) => {
                rollout.told.end(tell.gate);
                if let Err(why) = result {
                    rollout.note_not_told(tell.gate, at_unix_ms, &why);
                }
            }
            // Its report is made already.
            (None, Err(why)) => tracing::warn!(
                service = tell.service,
                rollout = tell.rollout,
                "not told: webhook {:?}: {why}",
                tell.spec.name
            ),
            (None, Ok(())) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::spec;

    fn gates() -> Vec<GateSpec> {
        let json = r#"{"strategy":"canary","gates":[
            {"judge":"sequential"},
            {"judge":"webhook","name":"all","url":"http://h:1/","type":"event"},
            {"judge":"webhook","name":"end","url":"http://h:1/","type":"post-rollout"},
            {"judge":"webhook","name":"ask","url":"http://h:1/","type":"rollout"}]}"#;
        spec::from_json(json).unwrap().gates
    }

    fn news(kind: &str, number: usize) -> News {
        News {
            happened: Happened {
                at_unix_ms: number as i64,
                kind: kind.into(),
                text: String::new(),
            },
            step: 0,
            weight: "5%".into(),
            phase: "running".into(),
            candidate: "green".into(),
        }
    }

    #[test]
    fn events_are_told_in_their_order_and_the_end_to_who_waits_for_it() {
        let (gates, mut told) = (gates(), Told::default());
        told.hear(&gates, &news("step", 1));
        told.hear(&gates, &news("holding", 2));
        let first = told.take();
        assert_eq!(first, [(1, vec![news("step", 1), news("holding", 2)])]);
        told.hear(&gates, &news("over", 3));
        // One at a time.
        assert_eq!(told.take(), [(2, vec![news("over", 3)])]);
        told.end(1);
        assert_eq!(told.take(), [(1, vec![news("over", 3)])]);
        told.end(1);
        told.end(2);
        assert!(told.take().is_empty());
    }

    #[test]
    fn a_webhook_that_hangs_costs_a_bounded_room_and_what_was_lost_is_counted() {
        let (gates, mut told) = (gates(), Told::default());
        told.hear(&gates, &news("step", 0));
        assert_eq!(told.take().len(), 1);
        for number in 0..MOST + 3 {
            told.hear(&gates, &news("step", number));
        }
        assert!(told.take().is_empty(), "it is under way");
        assert_eq!(told.take_lost(), [(1, 3)]);
        assert!(told.take_lost().is_empty());
        told.forget_running();
        assert_eq!(told.take()[0].1.len(), MOST);
    }

    #[test]
    fn what_was_not_begun_is_told_first() {
        let (gates, mut told) = (gates(), Told::default());
        told.hear(&gates, &news("step", 1));
        let (gate, given) = told.take().remove(0);
        told.hear(&gates, &news("step", 2));
        told.put_back(Tell {
            service: "web".into(),
            rollout: 1,
            gate,
            spec: gates[gate].clone(),
            news: given,
        });
        assert_eq!(told.take(), [(1, vec![news("step", 1), news("step", 2)])]);
    }

    #[test]
    fn a_report_waits_for_them_and_not_for_ever() {
        let (gates, mut told) = (gates(), Told::default());
        told.hear(&gates, &news("step", 1));
        assert!(!told.delays(0), "it is not over");
        told.over_ns = Some(1_000);
        assert!(told.delays(2_000));
        assert!(!told.delays(1_000 + WAIT_NS));
        told.take();
        assert!(told.delays(2_000));
        told.end(1);
        assert!(!told.delays(2_000));
        told.hear(&gates, &news("over", 2));
        assert_eq!(told.take_left(), [(1, 1), (2, 1)]);
        assert!(told.take_left().is_empty() && told.take().is_empty());
    }
}
