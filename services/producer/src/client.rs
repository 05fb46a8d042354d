//! Kafka's client: records in, and later what became of each.
use crate::{books::Failed, trace::TraceContext};
use rdkafka::{
    ClientConfig, ClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig},
};
use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// A record's number, and why it did not reach Kafka.
pub(crate) type Arrival = (usize, Option<Failed>);

#[derive(Clone, Debug, Default)]
struct Arrivals(Arc<Mutex<News>>);

#[derive(Debug, Default)]
struct News {
    arrived: Vec<Arrival>,
    complaint: Option<RDKafkaErrorCode>,
}

impl ClientContext for Arrivals {
    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        let mut news = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A broker that is away is complained of at every attempt.
        if news.complaint == code {
            tracing::debug!(%error, reason, "kafka");
        } else {
            tracing::warn!(%error, reason, "kafka");
            news.complaint = code;
        }
    }
}

impl ProducerContext for Arrivals {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let mut news = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = result.as_ref().err().map(|(error, _)| Failed::of(error));
        if failed.is_none() {
            news.complaint = None;
        }
        news.arrived.push((number, failed));
    }
}

pub(crate) struct Client {
    producer: BaseProducer<Arrivals>,
    arrivals: Arrivals,
    config: ClientConfig,
}

/// Why a record was not taken.
#[derive(Debug)]
pub(crate) enum Refused {
    /// For now: there is no room.
    Full,
    Failed(Failed),
}

impl Client {
    pub(crate) fn new(config: ClientConfig) -> Result<Self, KafkaError> {
        let arrivals = Arrivals::default();
        Ok(Self { producer: config.create_with_context(arrivals.clone())?, arrivals, config })
    }

    /// Another client in the place of one that is beyond help.
    pub(crate) fn anew(&self) -> Result<Self, KafkaError> {
        Self::new(self.config.clone())
    }

    /// Takes a record, whose arrival will be told under `number`.
    pub(crate) fn send(
        &self,
        topic: &str,
        key: &str,
        payload: &[u8],
        trace: Option<&TraceContext>,
        number: usize,
    ) -> Result<(), Refused> {
        let mut record = BaseRecord::with_opaque_to(topic, number).key(key).payload(payload);
        if let Some(trace) = trace {
            record = record.headers(headers(trace));
        }
        self.producer.send(record).map_err(|(error, _)| {
            let full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            if full { Refused::Full } else { Refused::Failed(Failed::of(&error)) }
        })
    }

    /// What has arrived, after waiting at most so long for it.
    pub(crate) fn arrived(&self, wait: Duration) -> Vec<Arrival> {
        self.producer.poll(wait);
        mem::take(&mut self.arrivals.0.lock().unwrap_or_else(PoisonError::into_inner).arrived)
    }

    /// Gives up everything that has not arrived.
    pub(crate) fn give_up(&self) {
        self.producer.purge(PurgeConfig::default().queue().inflight());
    }

    /// Whether it will never take a record again.
    pub(crate) fn is_broken(&self) -> bool {
        self.producer.client().fatal_error().is_some()
    }
}

fn headers(trace: &TraceContext) -> OwnedHeaders {
    let parent = Header { key: "traceparent", value: Some(&trace.traceparent) };
    let headers = OwnedHeaders::new().insert(parent);
    match &trace.tracestate {
        Some(state) => headers.insert(Header { key: "tracestate", value: Some(state) }),
        None => headers,
    }
}
