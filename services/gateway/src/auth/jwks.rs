//! The public keys of an issuer, read again and again. What is known belongs to one source and one issuer, by key
//! id and algorithm; however many tokens ask for a key that is not known, it is read by one at a time, and no sooner
//! than allowed.
use super::{
    Refused,
    config::Source,
    keys::{Head, Key, KeySet},
};
use anyhow::{Context, bail};
use dashstream_core::backoff::Backoff;
use dashstream_kit::ops::Latch;
use std::{
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Largest set, bytes.
const SET_BYTES_MAX: usize = 256 << 10;
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// A token with an unknown key makes nobody read again sooner than this after the last time.
const PAUSE: Duration = Duration::from_secs(5);
const BACKOFF: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(30) };
/// Keys that can't be read again are used for so many refresh intervals.
const STALE_INTERVALS: u32 = 10;

/// A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Cache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: Source,
    client: reqwest::Client,
    refresh: Duration,
    known: RwLock<Option<Known>>,
    /// Held while the keys are read: by one at a time.
    reading: tokio::sync::Mutex<Attempts>,
}

#[derive(Clone, Debug)]
struct Known {
    keys: Arc<KeySet>,
    at: Instant,
}

#[derive(Debug, Default)]
struct Attempts {
    failed: u32,
    last: Option<Instant>,
    /// Not before.
    next: Option<Instant>,
}

impl Cache {
    pub(super) fn new(source: Source, refresh: Duration) -> anyhow::Result<Self> {
        let (known, reading) = (RwLock::default(), tokio::sync::Mutex::default());
        Ok(Self(Arc::new(Inner { source, client: client()?, refresh, known, reading })))
    }

    /// The key that a token names.
    ///
    /// # Errors
    /// It is not known, also not after the keys were read again where that was due; or none is known now.
    pub(super) async fn find(&self, head: &Head) -> Result<Key, Refused> {
        if super::keys::name(head.algorithm).is_none() {
            return Err(Refused::Algorithm);
        }
        let asked = Instant::now();
        if let Some(key) = self.known().and_then(|known| known.keys.find(head).cloned()) {
            return Ok(key);
        }
        self.read_again(asked).await;
        let known = self.known().ok_or(Refused::KeysUnavailable)?;
        known.keys.find(head).cloned().ok_or(Refused::UnknownKey)
    }

    fn known(&self) -> Option<Known> {
        let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        known.filter(|known| known.at.elapsed() < self.0.refresh * STALE_INTERVALS)
    }

    /// Reads the keys, unless somebody has since `asked` or it is too soon.
    async fn read_again(&self, asked: Instant) {
        let mut attempts = self.0.reading.lock().await;
        let is_done = attempts.last.is_some_and(|last| last >= asked);
        let is_too_soon = attempts.next.is_some_and(|next| Instant::now() < next);
        if !is_done && !is_too_soon {
            self.read(&mut attempts).await;
        }
    }

    async fn read(&self, attempts: &mut Attempts) {
        let read = tokio::time::timeout(FETCH_TIMEOUT, self.fetch()).await;
        let read = read.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {FETCH_TIMEOUT:?}")));
        let now = Instant::now();
        attempts.last = Some(now);
        match read {
            Ok(keys) => {
                tracing::debug!(keys = keys.len(), "keys of tokens read");
                (attempts.failed, attempts.next) = (0, Some(now + PAUSE));
                let known = Some(Known { keys: Arc::new(keys), at: now });
                *self.0.known.write().unwrap_or_else(PoisonError::into_inner) = known;
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, failed = attempts.failed, "read the keys of tokens");
                attempts.next = Some(now + BACKOFF.delay(attempts.failed, rand::random()));
                attempts.failed = attempts.failed.saturating_add(1);
            }
        }
    }

    async fn fetch(&self) -> anyhow::Result<KeySet> {
        let text = match &self.0.source {
            Source::Url(url) => get(&self.0.client, url.clone()).await?,
            Source::File(path) => read_file(path)?,
        };
        KeySet::parse(&text).map_err(|error| anyhow::anyhow!("the key set is of no use: {error}"))
    }

    /// Reads the keys now and then until `stop`, and keeps trying where that fails.
    pub(super) async fn keep_fresh(self, latch: Latch, stop: CancellationToken) {
        let refresh = async {
            loop {
                let pause = {
                    let mut attempts = self.0.reading.lock().await;
                    self.read(&mut attempts).await;
                    let soon = attempts.next.map_or(PAUSE, |next| next.duration_since(Instant::now()));
                    if attempts.failed == 0 {
                        self.0.refresh.mul_f64(rand::random_range(0.8..1.0))
                    } else {
                        soon
                    }
                };
                match self.known() {
                    Some(_) => latch.ready(),
                    None => latch.not_ready("they can't be read"),
                }
                tokio::time::sleep(pause).await;
            }
        };
        stop.run_until_cancelled(refresh).await;
    }
}

/// A client that trusts whom the system trusts, and goes nowhere but where it is sent.
fn client() -> anyhow::Result<reqwest::Client> {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy();
    client.build().context("make the client that reads the keys of tokens")
}

async fn get(client: &reqwest::Client, url: reqwest::Url) -> anyhow::Result<Vec<u8>> {
    let mut answer = client.get(url).send().await?.error_for_status()?;
    if answer.status() != reqwest::StatusCode::OK {
        bail!("the answer is {}: expected 200", answer.status());
    }
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if text.len() + chunk.len() > SET_BYTES_MAX {
            bail!("it has more than {SET_BYTES_MAX} bytes");
        }
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}

fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    use std::io::Read;
    let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut text = Vec::new();
    file.take(SET_BYTES_MAX as u64)
        .read_to_end(&mut text)
        .with_context(|| format!("read {}", path.display()))?;
    Ok(text)
}
