//! What an application says, before it has a number.
use crate::budget::{Kind, Lane};
use dashstream_proto::telemetry as wire;
use prost::Message;
use serde_json::Value;

/// What a message costs beside its contents, bytes: headers here and in Kafka's client.
pub(crate) const OVERHEAD_BYTES: usize = 512;

/// A state, or why there is none.
pub(crate) type State = Result<Value, String>;

/// One thing that an application said of a run.
#[derive(Clone, Debug)]
pub(crate) enum Signal {
    Event(wire::Event),
    /// The start of a graph, with its schema and its state.
    Started {
        event: Box<wire::Event>,
        schema: Option<Value>,
        state: Option<State>,
    },
    State(State),
    /// Wish for a checkpoint of the state published last.
    Checkpoint,
    Token(wire::TokenChunk),
    Tool {
        call: Box<wire::ToolExecution>,
        arguments: Option<Value>,
        result: Option<Value>,
    },
    Metrics(wire::Metrics),
    Error(Box<wire::Error>),
}

impl Signal {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Event(_) | Self::Started { .. } => Kind::Event,
            Self::State(_) => Kind::StateDiff,
            Self::Checkpoint => Kind::Checkpoint,
            Self::Token(_) => Kind::TokenChunk,
            Self::Tool { .. } => Kind::ToolExecution,
            Self::Metrics(_) => Kind::Metrics,
            Self::Error(_) => Kind::Error,
        }
    }

    pub(crate) fn lane(&self) -> Lane {
        let event = if let Self::Event(event) = self { Some(event.event_type()) } else { None };
        Lane::of(self.kind(), event)
    }

    /// Whether readers no longer know the state once this is lost.
    pub(crate) fn carries_state(&self) -> bool {
        matches!(self, Self::State(_) | Self::Started { state: Some(_), .. })
    }

    /// How much memory it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        let value = |value: &Option<Value>| value.as_ref().map_or(0, value_bytes);
        let state = |state: &State| state.as_ref().map_or(0, value_bytes);
        OVERHEAD_BYTES
            + match self {
                Self::Event(event) => event.encoded_len(),
                Self::Started { event, schema, state: initial } => {
                    event.encoded_len() + value(schema) + initial.as_ref().map_or(0, state)
                }
                Self::State(given) => state(given),
                Self::Checkpoint => 0,
                Self::Token(token) => token.encoded_len(),
                Self::Tool { call, arguments, result } => {
                    call.encoded_len() + value(arguments) + value(result)
                }
                Self::Metrics(metrics) => metrics.encoded_len(),
                Self::Error(error) => error.encoded_len(),
            }
    }
}

/// The memory of a value, about.
fn value_bytes(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(value_bytes).sum(),
            // A node of a tree for each member.
            Value::Object(members) => {
                members.iter().map(|(name, member)| name.len() + 64 + value_bytes(member)).sum()
            }
        }
}
