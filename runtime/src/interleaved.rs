//! Locks of tokio for checks of interleavings: its own, with a point before each call at which another task may go
//! on. The executor, which chooses who goes on, is shuttle's.

use kiai_interleave::shuttle::sync::atomic::AtomicBool;
use kiai_interleave::shuttle::sync::atomic::Ordering;

pub(crate) use kiai_interleave::parking_lot::Mutex;

/// Another task may go on here.
fn point() {
    AtomicBool::new(false).load(Ordering::SeqCst);
}

pub(crate) struct AsyncMutex<T>(tokio::sync::Mutex<T>);

impl<T> AsyncMutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(tokio::sync::Mutex::new(value))
    }

    pub(crate) async fn lock(&self) -> tokio::sync::MutexGuard<'_, T> {
        point();
        self.0.lock().await
    }
}

pub(crate) mod watch {
    use tokio::sync::watch;

    use super::point;

    pub(crate) struct Sender<T>(watch::Sender<T>);
    pub(crate) struct Receiver<T>(watch::Receiver<T>);

    pub(crate) fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = watch::channel(value);
        (Sender(sender), Receiver(receiver))
    }

    impl<T> Sender<T> {
        pub(crate) fn borrow(&self) -> watch::Ref<'_, T> {
            point();
            self.0.borrow()
        }

        pub(crate) fn send_replace(&self, value: T) -> T {
            point();
            self.0.send_replace(value)
        }

        pub(crate) fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
            point();
            self.0.send_if_modified(modify)
        }

        pub(crate) fn subscribe(&self) -> Receiver<T> {
            point();
            Receiver(self.0.subscribe())
        }
    }

    impl<T> Receiver<T> {
        pub(crate) fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
            point();
            self.0.borrow_and_update()
        }

        pub(crate) async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
            point();
            self.0.changed().await
        }
    }
}
