//! A producer: its start, its runs, its end.
use crate::{
    books::Books,
    clean::Cleaner,
    client::Client,
    config::{Config, StartError, StatePolicy},
    metrics::Metrics,
    queue::{Depth, Queue},
    redact::Redactor,
    run::{Live, Run},
    thread::Rules,
    writer::Writer,
};
use dashstream_core::codec::THREAD_ID_BYTES_MAX;
use prometheus::Registry;
use rdkafka::ClientConfig;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

/// What the writer may need beyond its deadline, to say what it gave up.
const GRACE: Duration = Duration::from_secs(2);

/// Writes telemetry to one topic. A cheap handle; the last one that is dropped, with those of its runs, waits up to
/// [`Config::drop_timeout`] for what is on its way.
#[derive(Clone, Debug)]
pub struct Producer(Arc<Inner>);

/// What became of everything by the end of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    pub books: Books,
}

impl Report {
    /// Messages that are not known to be in Kafka.
    pub fn undelivered(&self) -> u64 {
        let total = self.books.total();
        total.lost() + total.in_flight()
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) queue: Arc<Queue>,
    cleaner: Cleaner,
    drop_timeout: Duration,
    runs: Mutex<Runs>,
    /// Its end takes the metrics out of the registry.
    _metrics: Metrics,
}

#[derive(Debug, Default)]
struct Runs {
    last: u64,
    /// By thread id.
    live: HashMap<Arc<str>, Weak<Live>>,
}

impl Producer {
    /// Starts a producer, with a thread of its own. `client` says how Kafka is reached; what becomes of messages is
    /// told in `registry`, which takes one producer at a time.
    ///
    /// # Errors
    /// When a setting can't hold, or is refused by Kafka's client. Whether Kafka answers shows later.
    pub fn start(config: Config, client: ClientConfig, registry: &Registry) -> Result<Self, StartError> {
        config.check()?;
        let cleaner = Cleaner::new(Redactor::new(&config.redact)?, config.text_bytes_max);
        if !cleaner.is_clean(&config.tenant_id) {
            let (setting, expected) = ("tenant_id", "a name that looks like no secret");
            return Err(StartError::Setting { setting, given: "***".into(), expected });
        }
        let client = Client::new(config.client(client))?;
        let queue = Arc::new(Queue::new(config.budget_bytes));
        let metrics = Metrics::register(registry, Arc::clone(&queue))?;
        let rules = Rules {
            cleaner: cleaner.clone(),
            tenant_id: config.tenant_id,
            publish_states: config.states == StatePolicy::Publish,
            checkpoint_every: config.checkpoint_every,
            record_bytes_max: config.record_bytes_max,
        };
        let writer = Writer::new(Arc::clone(&queue), client, config.topic, rules);
        thread::Builder::new().name("dashstream".into()).spawn(move || writer.run())?;
        let runs = Mutex::default();
        Ok(Self(Arc::new(Inner {
            queue,
            cleaner,
            drop_timeout: config.drop_timeout,
            runs,
            _metrics: metrics,
        })))
    }

    /// The run of a thread: the one there is, or a new one, whose numbers begin at 1.
    ///
    /// An id that can't be one is replaced: a blank one by a random one; one that is too long or looks like a secret by
    /// what may be shown of it and a hash, always the same for the same id.
    pub fn run(&self, thread_id: &str) -> Run {
        let id = self.0.thread_id(thread_id);
        let mut runs = self.0.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(live) = runs.live.get(&*id).and_then(Weak::upgrade) {
            return Run::of(live);
        }
        runs.last += 1;
        let id: Arc<str> = id.into();
        let live =
            Arc::new(Live { producer: Arc::clone(&self.0), key: runs.last, thread_id: Arc::clone(&id) });
        runs.live.insert(id, Arc::downgrade(&live));
        Run::of(live)
    }

    /// What became of every message so far.
    pub fn books(&self) -> Books {
        self.0.queue.books()
    }

    /// How full it is.
    pub fn depth(&self) -> Depth {
        self.0.queue.reading().1
    }

    /// Takes nothing more, delivers what it can in that time, and tells what became of everything. Blocks the thread
    /// for so long, and two seconds more at worst.
    pub fn shutdown(&self, timeout: Duration) -> Report {
        self.0.end(timeout);
        Report { books: self.books() }
    }
}

impl Inner {
    fn end(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        self.queue.close(deadline);
        if !self.queue.wait_for_end(deadline + GRACE) {
            tracing::error!("the writer of telemetry did not end in time");
        }
    }

    /// A run has no handle any more.
    pub(crate) fn over(&self, live: &Live) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if runs.live.get(&live.thread_id).is_some_and(|other| other.strong_count() == 0) {
            runs.live.remove(&live.thread_id);
        }
        self.queue.over(live.key);
    }

    fn thread_id(&self, given: &str) -> String {
        let trimmed = given.trim();
        if trimmed.is_empty() {
            return uuid::Uuid::new_v4().to_string();
        }
        if trimmed.len() <= THREAD_ID_BYTES_MAX && self.cleaner.is_clean(trimmed) {
            return trimmed.to_owned();
        }
        let mut shown = trimmed.to_owned();
        self.cleaner.text(&mut shown);
        let shown = &shown[..shown.floor_char_boundary(THREAD_ID_BYTES_MAX / 2)];
        let hash: String = Sha256::digest(given).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("{shown}-{hash}")
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end(self.drop_timeout);
        let total = self.queue.books().total();
        if total.lost() > 0 {
            tracing::warn!(lost = total.lost(), accepted = total.accepted, "telemetry was lost");
        }
    }
}
