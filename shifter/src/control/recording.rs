//! What the pools of a service do, window by window, as lines of a recording.

use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    Context,
    services::long,
    stream::{self, Ended, Queue},
};
use crate::{
    judge::{Recorded, Recording},
    model::{PoolName, signals::PoolSignals},
    proto::RecordingLine,
    reconcile::controller::ControlError,
};

/// Lines that wait for the client.
const QUEUE: usize = 16;

type Item = Result<RecordingLine, Status>;

/// Sums at one moment.
struct Sums {
    live: PoolName,
    signals: [PoolSignals; 2],
    at: Instant,
}

/// Starts a recording. It ends when another pool becomes live.
pub(super) fn start(
    context: &Context,
    service: String,
    interval: Duration,
) -> ReceiverStream<Item> {
    stream::start(context, QUEUE, move |context, queue| async move {
        record(&context, service, interval, &queue).await
    })
}

async fn record(
    context: &Context,
    service: String,
    interval: Duration,
    queue: &Queue<RecordingLine>,
) -> Result<(), Ended> {
    let send = async |line: String| {
        let sent = queue.send(Ok(RecordingLine { line })).await;
        sent.map_err(|_| None::<Status>)
    };
    let first = read(context, &service).await?;
    let (live, began) = (first.live, first.at);
    send(Recording::header(&service, live)).await?;
    let mut before = first;
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.tick().await;
    loop {
        tick.tick().await;
        let now = read(context, &service).await?;
        if now.live != live {
            let text = format!(
                "service {service:?}: {} is live now, so what {live} did as the live pool ends here: begin anew",
                now.live
            );
            return Err(Some(ControlError::Precondition(text).into()));
        }
        send(window(&before, &now, began).line()).await?;
        before = now;
    }
}

fn window(before: &Sums, now: &Sums, began: Instant) -> Recorded {
    let [blue, green] = [0, 1].map(|pool| now.signals[pool].since(&before.signals[pool]));
    Recorded {
        at_ms: (now.at - began).as_millis() as u64,
        step: 0,
        blue,
        green,
    }
}

async fn read(context: &Context, service: &str) -> Result<Sums, Option<Status>> {
    let name = service.to_owned();
    let view = long(&context.controller, move |c| c.get(&name)).await;
    let view = view.map_err(|error| Some(Status::from(error)))?;
    Ok(Sums {
        live: view.spec.live,
        signals: view.signals,
        at: Instant::now(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_what_came_in_it() {
        let pool = |attempts| PoolSignals {
            attempts,
            ..PoolSignals::default()
        };
        let began = Instant::now();
        let sums = |ms, blue, green| Sums {
            live: PoolName::Blue,
            signals: [pool(blue), pool(green)],
            at: began + Duration::from_millis(ms),
        };
        let window = window(&sums(1_000, 7, 1), &sums(2_005, 107, 6), began);
        assert_eq!((window.at_ms, window.step), (2_005, 0));
        assert_eq!((window.blue.attempts, window.green.attempts), (100, 5));
    }
}
