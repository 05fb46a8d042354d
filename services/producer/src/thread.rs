//! One thread's telemetry in order: numbers, states against what was published before, checkpoints, what is left of a
//! message that does not fit. It decides, and sends nothing.
use crate::{
    books::{Degraded, Dropped},
    budget::Kind,
    clean::Cleaner,
    diff::{Body, body},
    signal::{Signal, State},
};
use dashstream_core::{
    canonical::{canonical_json, text_hash},
    codec,
};
use dashstream_proto::telemetry::{
    self as wire, AttributeValue, Checkpoint, DashStreamMessage, Event, EventType, Header, MessageType,
    StateDiff, attribute_value::Value as Attribute, dash_stream_message::Message as Member,
};
use prost::Message;
use serde_json::Value;

/// Where messages above this size are compressed, bytes.
const COMPRESS_ABOVE: usize = 512;
/// What a record has in Kafka beside key and value, bytes, and its batch around it.
const RECORD_OVERHEAD_BYTES: usize = 2_048;
/// Largest schema of a graph that is sent along, bytes.
const SCHEMA_BYTES_MAX: usize = 500 << 10;

/// What is the same for all threads of a producer.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) cleaner: Cleaner,
    pub(crate) tenant_id: String,
    pub(crate) publish_states: bool,
    /// States from one checkpoint to the next; 0 for none.
    pub(crate) checkpoint_every: u32,
    /// Largest record that Kafka takes, bytes, with all that belongs to it.
    pub(crate) record_bytes_max: usize,
}

/// What is new with each message: its id, and when it was said, microseconds since 1970.
pub(crate) struct Stamps<'a> {
    pub(crate) timestamp_us: i64,
    pub(crate) ids: &'a mut dyn FnMut() -> [u8; 16],
}

/// What readers do not know if a message is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carries {
    NoState,
    State,
    Checkpoint([u8; 16]),
}

/// What becomes of a message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outgoing {
    Send { kind: Kind, payload: Vec<u8>, carries: Carries },
    Drop { kind: Kind, reason: Dropped },
}

/// What was refused before a message of the same thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hole {
    /// Numbers that nobody gets.
    pub(crate) burned: u64,
    /// A state was among what was refused.
    pub(crate) state: bool,
}

/// One thread.
///
/// Invariant: a patch is only ever made against `published`, which is what a reader holds who has everything so far.
/// So whatever is lost clears it, and the next state is whole.
#[derive(Debug)]
pub(crate) struct Thread {
    id: String,
    /// Names this life of the thread: numbers begin anew with it.
    epoch: String,
    sequence: u64,
    epoch_said: bool,
    published: Option<Value>,
    /// Empty before the first.
    checkpoint_id: Vec<u8>,
    states_since_checkpoint: u32,
}

impl Thread {
    pub(crate) fn new(id: String, epoch: String) -> Self {
        Self {
            id,
            epoch,
            sequence: 0,
            epoch_said: false,
            published: None,
            checkpoint_id: Vec::new(),
            states_since_checkpoint: 0,
        }
    }

    /// Messages were refused before the next one.
    pub(crate) fn skip(&mut self, hole: Hole) {
        self.sequence += hole.burned;
        if hole.state {
            self.published = None;
        }
    }

    /// A message that was sent has not reached Kafka.
    pub(crate) fn on_failure(&mut self, carried: Carries) {
        match carried {
            Carries::State => self.published = None,
            Carries::Checkpoint(id) if id == *self.checkpoint_id => self.checkpoint_id.clear(),
            Carries::NoState | Carries::Checkpoint(_) => {}
        }
    }

    /// The messages of a signal, in the order in which they are sent; the first is of the signal's own kind.
    pub(crate) fn on(
        &mut self,
        signal: Signal,
        rules: &Rules,
        stamps: &mut Stamps<'_>,
    ) -> (Vec<Outgoing>, Vec<Degraded>) {
        let mut step = Step { thread: self, rules, stamps, outgoing: Vec::new(), degraded: Vec::new() };
        step.signal(signal);
        (step.outgoing, step.degraded)
    }
}

/// A signal on its way to messages.
struct Step<'a, 'b> {
    thread: &'a mut Thread,
    rules: &'a Rules,
    stamps: &'a mut Stamps<'b>,
    outgoing: Vec<Outgoing>,
    degraded: Vec<Degraded>,
}

impl Step<'_, '_> {
    fn signal(&mut self, signal: Signal) {
        let cleaner = &self.rules.cleaner;
        match signal {
            Signal::Started { event, schema, state } => self.started(*event, schema, state),
            Signal::State(state) => self.state(state),
            Signal::Checkpoint => self.checkpoint(true),
            Signal::Event(mut event) => {
                cleaner.event(&mut event);
                self.event(event);
            }
            Signal::Token(mut token) => {
                cleaner.token(&mut token);
                self.member(Kind::TokenChunk, Carries::NoState, |header| {
                    Member::TokenChunk(wire::TokenChunk { header, ..token })
                });
            }
            Signal::Tool { mut call, arguments, result } => {
                cleaner.tool(&mut call);
                call.arguments = arguments.map(|value| self.json(value)).unwrap_or_default();
                call.result = result.map(|value| self.json(value)).unwrap_or_default();
                self.member(Kind::ToolExecution, Carries::NoState, |header| {
                    Member::ToolExecution(wire::ToolExecution { header, ..*call })
                });
            }
            Signal::Metrics(mut metrics) => {
                cleaner.metrics(&mut metrics);
                self.member(Kind::Metrics, Carries::NoState, |header| {
                    Member::Metrics(wire::Metrics { header, ..metrics })
                });
            }
            Signal::Error(mut error) => {
                cleaner.error(&mut error);
                self.member(Kind::Error, Carries::NoState, |header| {
                    Member::Error(wire::Error { header, ..*error })
                });
            }
        }
    }

    fn json(&self, mut value: Value) -> Vec<u8> {
        self.rules.cleaner.value(&mut value);
        canonical_json(&value).into_bytes()
    }

    /// The start of a graph carries the state if both fit into a record; otherwise the state follows by itself.
    fn started(&mut self, mut event: Event, schema: Option<Value>, state: Option<State>) {
        self.rules.cleaner.event(&mut event);
        let schema = schema.map(|mut schema| {
            self.rules.cleaner.value(&mut schema);
            canonical_json(&schema)
        });
        match schema {
            Some(schema) if schema.len() <= SCHEMA_BYTES_MAX => {
                event.attributes.insert("graph_schema_json".into(), text(schema));
            }
            Some(_) => self.degraded.push(Degraded::SchemaTooLarge),
            None => {}
        }
        let Some(state) = state.filter(|_| self.rules.publish_states) else { return self.event(event) };
        let Ok(mut state) = state else {
            self.event(event);
            return self.state(state);
        };
        self.rules.cleaner.value(&mut state);
        let mut whole = event.clone();
        whole.attributes.insert("initial_state_json".into(), text(canonical_json(&state)));
        if whole.encoded_len() <= self.bytes_max() {
            self.event_with(whole, Carries::State);
            self.thread.published = Some(state);
        } else {
            self.event(event);
            self.degraded.push(Degraded::InitialStateSplit);
            self.thread.published = None;
            self.clean_state(state);
        }
    }

    fn event(&mut self, event: Event) {
        self.event_with(event, Carries::NoState);
    }

    fn event_with(&mut self, mut event: Event, carries: Carries) {
        if !self.thread.epoch_said {
            self.thread.epoch_said = true;
            event.attributes.insert("producer_epoch".into(), text(self.thread.epoch.clone()));
        }
        self.member(Kind::Event, carries, |header| Member::Event(Event { header, ..event }));
    }

    fn state(&mut self, state: State) {
        if !self.rules.publish_states {
            return self.drop(Kind::StateDiff, Dropped::StatesWithheld);
        }
        match state {
            Ok(mut state) => {
                self.rules.cleaner.value(&mut state);
                self.clean_state(state);
            }
            Err(why) => self.unavailable(Degraded::NotSerialisable, &why),
        }
    }

    fn clean_state(&mut self, state: Value) {
        let canonical = canonical_json(&state);
        let base_checkpoint_id = self.thread.checkpoint_id.clone();
        let mut diff = StateDiff {
            base_checkpoint_id,
            state_hash: text_hash(&canonical).to_vec(),
            ..Default::default()
        };
        match body(self.thread.published.as_ref(), &state, &canonical) {
            Body::Patch(operations) => diff.operations = operations,
            Body::Full => diff.full_state = canonical.into_bytes(),
        }
        let instead_of_patch = !diff.full_state.is_empty() && self.thread.published.is_some();
        if let Some(payload) =
            self.fitting(Kind::StateDiff, |header| Member::StateDiff(StateDiff { header, ..diff }))
        {
            self.outgoing.push(Outgoing::Send { kind: Kind::StateDiff, payload, carries: Carries::State });
            self.degraded.extend(instead_of_patch.then_some(Degraded::PatchLargerThanState));
            self.thread.published = Some(state);
            self.checkpoint(false);
        } else {
            self.unavailable(Degraded::StateTooLarge, "the state does not fit into a record");
        }
    }

    /// The state's number is burned, and a warning in its place says that the state is not known any more.
    fn unavailable(&mut self, degraded: Degraded, why: &str) {
        self.drop(Kind::StateDiff, Dropped::StateUnavailable);
        self.thread.published = None;
        self.degraded.push(degraded);
        let mut message = format!("state unavailable: {why}");
        self.rules.cleaner.text(&mut message);
        let attributes = [("message", message), ("state_unavailable", degraded.label().to_owned())];
        self.event(Event {
            event_type: EventType::NodeWarning.into(),
            attributes: attributes.map(|(name, value)| (name.to_owned(), text(value))).into(),
            ..Default::default()
        });
    }

    /// A checkpoint of what is published, if it is wished for or due.
    fn checkpoint(&mut self, wished: bool) {
        self.thread.states_since_checkpoint += u32::from(!wished);
        let every = self.rules.checkpoint_every;
        if !wished && (every == 0 || self.thread.states_since_checkpoint < every) {
            return;
        }
        self.thread.states_since_checkpoint = 0;
        let Some(state) = &self.thread.published else {
            return self.drop(Kind::Checkpoint, Dropped::StateUnavailable);
        };
        let state = canonical_json(state);
        let id = (self.stamps.ids)();
        // Not compressed by itself: the frame is, and not every reader looks for a second time.
        let checkpoint = Checkpoint {
            checkpoint_id: id.to_vec(),
            checksum: text_hash(&state).to_vec(),
            state: state.into_bytes(),
            state_type: "serde_json::Value".into(),
            ..Default::default()
        };
        let member = |header| Member::Checkpoint(Checkpoint { header, ..checkpoint });
        let Some(payload) = self.fitting(Kind::Checkpoint, member) else {
            return self.drop(Kind::Checkpoint, Dropped::TooLarge);
        };
        self.outgoing.push(Outgoing::Send {
            kind: Kind::Checkpoint,
            payload,
            carries: Carries::Checkpoint(id),
        });
        self.thread.checkpoint_id = id.to_vec();
    }

    fn member(&mut self, kind: Kind, carries: Carries, member: impl FnOnce(Option<Header>) -> Member) {
        match self.fitting(kind, member) {
            Some(payload) => self.outgoing.push(Outgoing::Send { kind, payload, carries }),
            None => self.drop(kind, Dropped::TooLarge),
        }
    }

    /// Burns a number.
    fn drop(&mut self, kind: Kind, reason: Dropped) {
        self.thread.sequence += 1;
        self.outgoing.push(Outgoing::Drop { kind, reason });
    }

    /// The payload of a message with the next number, if Kafka and all readers take it. Otherwise no number is taken.
    fn fitting(&mut self, kind: Kind, member: impl FnOnce(Option<Header>) -> Member) -> Option<Vec<u8>> {
        let message = DashStreamMessage { message: Some(member(Some(self.header(kind)))) };
        if message.encoded_len() > codec::Limits::default().message_bytes_max {
            return None;
        }
        let payload = codec::encode(&message, COMPRESS_ABOVE);
        let fits = payload.len() <= self.bytes_max();
        self.thread.sequence += u64::from(fits);
        fits.then_some(payload)
    }

    fn header(&mut self, kind: Kind) -> Header {
        Header {
            message_id: (self.stamps.ids)().to_vec(),
            timestamp_us: self.stamps.timestamp_us,
            tenant_id: self.rules.tenant_id.clone(),
            thread_id: self.thread.id.clone(),
            sequence: self.thread.sequence + 1,
            r#type: message_type(kind).into(),
            schema_version: codec::SCHEMA_VERSION_MAX,
            ..Default::default()
        }
    }

    fn bytes_max(&self) -> usize {
        self.rules.record_bytes_max.saturating_sub(self.thread.id.len() + RECORD_OVERHEAD_BYTES)
    }
}

fn message_type(kind: Kind) -> MessageType {
    match kind {
        Kind::Event => MessageType::Event,
        Kind::StateDiff => MessageType::StateDiff,
        Kind::TokenChunk => MessageType::TokenChunk,
        Kind::ToolExecution => MessageType::ToolExecution,
        Kind::Checkpoint => MessageType::Checkpoint,
        Kind::Metrics => MessageType::Metrics,
        Kind::Error => MessageType::Error,
    }
}

pub(crate) fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue { value: Some(Attribute::StringValue(value.into())) }
}

#[cfg(test)]
mod tests;
