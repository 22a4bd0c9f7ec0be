//! Calls that a dead guest must not delay: it is asked for a sign of life while it does not answer, and without one its
//! machine is stopped.
//!
//! A guest that works for long (it writes a volume's data back) answers other calls meanwhile; one whose kernel or
//! agent hangs answers none. These calls end processes, and the machine's end does so too.

use std::future::Future;
use std::time::Duration;

use super::Sandbox;
use crate::agent::AgentError;

/// How long a call may go without an answer before the guest is asked for a sign of life.
const QUIET: Duration = Duration::from_millis(1000);
/// How long the guest may take to give a sign of life. With `QUIET` and `STOP` this is less than two seconds.
const SIGN: Duration = Duration::from_millis(500);
/// How long the end of a machine that is being stopped is waited for: a vCPU that hangs in the host has none.
const STOP: Duration = Duration::from_millis(400);

/// The guest is dead, and its machine was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadGuest;

impl Sandbox {
    /// Waits for a call to the agent; if the guest is dead, stops its machine instead.
    pub async fn unless_dead<T>(
        &self,
        call: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<Result<T, AgentError>, DeadGuest> {
        let agent = self.agent.clone();
        let sign = move || {
            let agent = agent.clone();
            async move { agent.is_alive().await }
        };
        let dead = match answered(call, sign).await {
            // The guest is ending; how it ends is reported in a moment.
            Some(Err(AgentError::Lost { .. })) => tokio::time::timeout(SIGN, self.end.wait()).await.is_err(),
            Some(answer) => return Ok(answer),
            None => true,
        };
        if dead {
            tracing::error!("the guest does not answer: its machine is stopped");
            self.stop().await;
        }
        Err(DeadGuest)
    }

    /// Whether the machine runs and the guest gives a sign of life.
    pub async fn is_alive(&self) -> bool {
        let sign = tokio::time::timeout(QUIET, self.agent.is_alive());
        self.end.ended().is_none() && sign.await.is_ok()
    }

    async fn stop(&self) {
        self.end.expect();
        let vm = self.vm.0.clone();
        let stopping = tokio::task::spawn_blocking(move || vm.stop());
        if tokio::time::timeout(STOP, stopping).await.is_err() {
            tracing::error!("the machine does not stop within {} ms: it is left behind", STOP.as_millis());
        }
        self.end.abandon(&self.vm.0);
    }
}

/// The answer to `call`; none if the guest gives no sign of life meanwhile.
async fn answered<T, S: Future<Output = ()>>(
    call: impl Future<Output = T>,
    sign: impl Fn() -> S,
) -> Option<T> {
    let mut call = std::pin::pin!(call);
    loop {
        if let Ok(answer) = tokio::time::timeout(QUIET, &mut call).await {
            return Some(answer);
        }
        tokio::select! {
            biased;
            answer = &mut call => return Some(answer),
            sign = tokio::time::timeout(SIGN, sign()) => if sign.is_err() {
                return None;
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;

    use tokio::time::Instant;
    use tokio::time::sleep;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_dead_guest_is_known_in_less_than_two_seconds() {
        let begun = Instant::now();
        assert_eq!(answered(pending::<()>(), pending).await, None);
        assert!(begun.elapsed() + STOP < Duration::from_secs(2), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_works_for_long_is_waited_for() {
        let begun = Instant::now();
        let slow = async {
            sleep(LONG).await;
            "done"
        };
        assert_eq!(answered(slow, || sleep(SIGN / 2)).await, Some("done"));
        assert_eq!(begun.elapsed(), LONG);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_dies_at_work_is_not_waited_for() {
        let begun = Instant::now();
        let signs = Cell::new(3);
        let dying = || async {
            if signs.get() == 0 {
                pending().await
            }
            signs.set(signs.get() - 1);
        };
        assert_eq!(answered(sleep(LONG), dying).await, None);
        assert_eq!(begun.elapsed(), QUIET * 4 + SIGN);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_at_once_needs_no_sign() {
        assert_eq!(answered(async { 3 }, || async { panic!("asked for a sign") }).await, Some(3));
    }
}
