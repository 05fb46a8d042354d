//! Stop, spawn and drain: the only place that calls `tokio::spawn`.
//!
//! Every task has a name, so that a drain which does not end can say who held it up.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of one process (or of one service, where several share a process). A cheap handle.
#[derive(Clone, Default)]
pub struct Tasks(Arc<Inner>);

#[derive(Default)]
struct Inner {
    stop: CancellationToken,
    tracker: TaskTracker,
    last_id: AtomicU64,
    alive: Mutex<BTreeMap<u64, Cow<'static, str>>>,
}

/// A drain ran out of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tasks did not end within {}: {}", humantime::format_duration(*.timeout), .names.join(", "))]
pub struct Undrained {
    /// Those still alive when time was up, oldest first.
    pub names: Vec<String>,
    /// The time they were given.
    pub timeout: Duration,
}

impl Tasks {
    /// No tasks, not stopped.
    pub fn new() -> Self {
        Self::default()
    }

    /// A clone of the root token: cancelled when the process shall leave. Cancelling it stops the
    /// process, so give a part of it a `child_token`.
    pub fn stop_token(&self) -> CancellationToken {
        self.0.stop.clone()
    }

    /// Tells every task to leave. Returns at once; see [`Tasks::drain`].
    pub fn stop(&self) {
        self.0.stop.cancel();
    }

    /// Starts a task, which drains wait for. If it panics that is logged, and the process goes on.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn<F>(&self, name: impl Into<Cow<'static, str>>, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let entry = self.enter(name.into());
        detached(self.0.tracker.track_future(async move {
            let mut entry = entry;
            let output = future.await;
            entry.ended = true;
            output
        }))
    }

    /// Starts a task without which the process is of no use: should it end, panic or be aborted
    /// before the stop, that is logged with what it returned, and the process is stopped.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn_vital<F>(&self, name: impl Into<Cow<'static, str>>, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: fmt::Debug + Send + 'static> + Send + 'static,
    {
        let name = name.into();
        let guard = Vital { tasks: self.clone(), name: name.clone(), reported: false };
        self.spawn(name, async move {
            let mut guard = guard;
            let output = future.await;
            guard.report(&output);
            output
        })
    }

    /// Names of the tasks that have not ended, oldest first.
    pub fn alive(&self) -> Vec<String> {
        self.0.names().values().map(ToString::to_string).collect()
    }

    /// Tells every task to leave and waits until all have.
    ///
    /// # Errors
    /// [`Undrained`] if some have not ended after `timeout`. They go on running: the caller is
    /// expected to end the process.
    pub async fn drain(&self, timeout: Duration) -> Result<(), Undrained> {
        self.stop();
        self.0.tracker.close();
        let drained = tokio::time::timeout(timeout, self.0.tracker.wait()).await;
        drained.map_err(|_| Undrained { names: self.alive(), timeout })
    }

    fn enter(&self, name: Cow<'static, str>) -> Entry {
        let id = self.0.last_id.fetch_add(1, Ordering::Relaxed);
        self.0.names().insert(id, name);
        Entry { tasks: self.clone(), id, ended: false }
    }
}

/// Starts a task that drains do not wait for, because it serves the drain itself.
#[expect(clippy::disallowed_methods, reason = "the one place where tasks are spawned")]
pub(crate) fn detached<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    tokio::spawn(future)
}

impl Inner {
    /// A panic cannot happen while the lock is held; if it did, the names would still be right.
    fn names(&self) -> MutexGuard<'_, BTreeMap<u64, Cow<'static, str>>> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("stopped", &self.0.stop.is_cancelled())
            .field("alive", &self.alive())
            .finish()
    }
}

/// Held by a task while it lives; a drop is seen however the task ends.
struct Entry {
    tasks: Tasks,
    id: u64,
    ended: bool,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let name = self.tasks.0.names().remove(&self.id).unwrap_or_default();
        if !self.ended && std::thread::panicking() {
            tracing::error!(task = %name, "task panicked");
        }
    }
}

/// Stops the process unless it was stopping already.
struct Vital {
    tasks: Tasks,
    name: Cow<'static, str>,
    reported: bool,
}

impl Vital {
    fn report(&mut self, output: &dyn fmt::Debug) {
        self.reported = true;
        if !self.tasks.0.stop.is_cancelled() {
            tracing::error!(task = %self.name, ?output, "vital task ended, stopping");
            self.tasks.stop();
        }
    }
}

impl Drop for Vital {
    fn drop(&mut self) {
        if !self.reported {
            self.report(&format_args!("none: panicked or aborted"));
        }
    }
}

#[cfg(test)]
mod tests;
