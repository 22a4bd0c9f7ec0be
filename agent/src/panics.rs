//! Panics: one ends only the request in which it happens, or, in a task that the agent cannot do without, the whole
//! guest, which the host notices.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;

#[cfg(not(panic = "unwind"))]
compile_error!("with panics that abort, a mistake in the answer to one request ends the pod");

/// Runs `work`; a panic in it becomes an error with the panic's message.
///
/// State that `work` shares with others has to be consistent wherever it can panic. The agent's locks are not poisoned,
/// and the state that they guard is changed in single steps.
pub async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| message(&*panic))
}

/// Starts a task that has to run for as long as the agent. If it ends or panics, so does PID 1.
pub fn spawn_vital(name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(async move {
        let reason = caught(work).await.err().unwrap_or_else(|| String::from("it has ended"));
        tracing::error!("the agent cannot go on without its task {name:?}: {reason}");
        std::process::abort();
    });
}

/// Has a panic end the process at once. For a process that libcontainer clones: unwinding in the clone would go on in
/// the original's code.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| String::from("without a message")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_with_its_message() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
        assert_eq!(caught(async { panic!("as it is") }).await, Err::<(), _>("panicked: as it is".into()));
        let formatted = caught(async {
            tokio::task::yield_now().await;
            panic!("number {}", 3)
        });
        assert_eq!(formatted.await, Err::<(), _>("panicked: number 3".into()));
        let other = caught(async { std::panic::panic_any(7_u8) });
        assert_eq!(other.await, Err::<(), _>("panicked: without a message".into()));
    }
}
