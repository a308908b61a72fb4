//! Streams: a task for each, which ends with its client and with the agent.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Context, gate::leaving, stopped};

/// Where a stream's task puts what its client shall get.
pub(super) type Queue<T> = mpsc::Sender<Result<T, Status>>;
/// Why a task ends; `None`: the client or the agent is gone.
pub(super) type Ended = Option<Status>;

/// Starts a stream that `tell` fills; so many responses wait for the client.
pub(super) fn start<T, F>(
    context: &Context,
    waiting: usize,
    tell: impl FnOnce(Context, Queue<T>) -> F,
) -> ReceiverStream<Result<T, Status>>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Ended>> + Send + 'static,
{
    let (queue, responses) = mpsc::channel(waiting);
    let telling = tell(context.clone(), queue.clone());
    let shutdown = context.shutdown.clone();
    tokio::spawn(async move {
        let told = async {
            if let Err(Some(status)) = telling.await {
                let _ = queue.send(Err(status)).await;
            }
        };
        tokio::select! {
            () = told => {}
            () = queue.closed() => {}
            () = stopped(shutdown) => {
                // A client that does not read is not waited for: its stream just ends.
                let _ = queue.try_send(Err(leaving()));
            }
        }
    });
    ReceiverStream::new(responses)
}
