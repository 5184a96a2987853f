//! Follows the head of a task's stream, over restarts of the task within one daemon.

use tokio::sync::watch;

use crate::stream::{Mark, Stream};

/// The marks of the stream that is open now; `None` before the first is.
pub(super) type Open = watch::Sender<Option<watch::Receiver<Option<Mark>>>>;

/// Tells followers of a stream that was just opened.
pub(super) fn publish(open: &Open, stream: &Stream) {
    open.send_replace(Some(stream.marks()));
}

/// Waits for marks of a task's stream. What a mark covers is durable, and readable from then on.
#[derive(Debug)]
pub struct Follower {
    open: watch::Receiver<Option<watch::Receiver<Option<Mark>>>>,
    marks: Option<watch::Receiver<Option<Mark>>>,
}

impl Follower {
    pub(super) fn new(open: watch::Receiver<Option<watch::Receiver<Option<Mark>>>>) -> Self {
        Self { open, marks: None }
    }

    /// The newest mark, once it is another one than was given last; marks between two calls are passed over. `None` when
    /// the task has ended. Safe to cancel.
    pub async fn next(&mut self) -> Option<Mark> {
        loop {
            let Some(marks) = &mut self.marks else {
                let is_open = |marks: &watch::Receiver<Option<Mark>>| marks.has_changed().is_ok();
                let mut marks = self.open.wait_for(|marks| marks.as_ref().is_some_and(is_open)).await.ok()?.clone()?;
                marks.mark_changed();
                self.marks = Some(marks);
                continue;
            };
            if marks.changed().await.is_err() {
                self.marks = None;
            } else if let Some(mark) = marks.borrow_and_update().clone() {
                return Some(mark);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_core::Position;

    use super::*;
    use crate::stream::{LogPosition, Totals};

    fn mark(at: u64) -> Mark {
        let totals = Totals::default();
        Mark {
            at: LogPosition(at),
            source: Position(at.into()),
            lineage: None,
            arrival_us: 0,
            newest_commit_us: 0,
            totals,
        }
    }

    #[tokio::test]
    async fn a_follower_gets_the_newest_mark_and_goes_on_with_the_next_stream() {
        let open = Open::default();
        let mut follower = Follower::new(open.subscribe());
        let first = watch::Sender::new(Some(mark(1)));
        open.send_replace(Some(first.subscribe()));
        assert_eq!(follower.next().await, Some(mark(1)));
        first.send_replace(Some(mark(2)));
        first.send_replace(Some(mark(3)));
        assert_eq!(follower.next().await, Some(mark(3)));
        drop(first);
        let (again, second) = (async { follower.next().await }, watch::Sender::new(Some(mark(3))));
        let (seen, ()) = tokio::join!(again, async {
            tokio::task::yield_now().await;
            open.send_replace(Some(second.subscribe()));
        });
        assert_eq!(seen, Some(mark(3)));
        drop((open, second));
        assert_eq!(follower.next().await, None);
    }
}
