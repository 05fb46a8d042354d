//! The words with which an application describes what it does.
use dashstream_proto::telemetry::{
    Error, MetricValue, TokenChunk, TokenStats,
    error::Severity,
    metric_value::{MetricType, Value},
    token_chunk::FinishReason,
};

/// A request to a model.
#[derive(Clone, Copy, Debug)]
pub struct Llm<'a> {
    pub request_id: &'a str,
    pub model: &'a str,
}

/// A piece of a model's answer.
#[derive(Clone, Copy, Debug)]
pub struct Token<'a> {
    pub llm: Llm<'a>,
    pub text: &'a str,
    /// From 0, ascending within a request.
    pub index: u32,
    /// Of the last piece: why it is the last.
    pub finish: Option<FinishReason>,
    /// Of the last piece: tokens of the prompt and of the whole answer.
    pub usage: Option<(u32, u32)>,
}

/// A call of a tool.
#[derive(Clone, Copy, Debug)]
pub struct ToolCall<'a> {
    pub id: &'a str,
    pub name: &'a str,
    /// How often it was tried before.
    pub retries: u32,
}

/// A measurement, and its unit: `ratio`, `count`, `seconds` and the like.
#[derive(Clone, Copy, Debug)]
pub enum Measure<'a> {
    /// Only grows.
    Count(i64, &'a str),
    /// Goes up and down.
    Gauge(f64, &'a str),
    Flag(bool),
}

/// Something that went wrong.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    /// Such as `TOOL_TIMEOUT`.
    pub code: &'a str,
    pub message: &'a str,
    pub severity: Severity,
    /// The node in which it happened.
    pub node: &'a str,
    pub suggestions: &'a [&'a str],
}

impl From<Token<'_>> for TokenChunk {
    fn from(token: Token<'_>) -> Self {
        let stats = token.usage.map(|(prompt_tokens, completion_tokens)| TokenStats {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        });
        Self {
            request_id: token.llm.request_id.into(),
            text: token.text.into(),
            chunk_index: token.index,
            is_final: token.finish.is_some(),
            finish_reason: token.finish.unwrap_or(FinishReason::None).into(),
            model: token.llm.model.into(),
            stats,
            ..Default::default()
        }
    }
}

impl From<Measure<'_>> for MetricValue {
    fn from(measure: Measure<'_>) -> Self {
        let (value, unit, kind) = match measure {
            Measure::Count(count, unit) => (Value::IntValue(count), unit, MetricType::Counter),
            Measure::Gauge(value, unit) => (Value::FloatValue(value), unit, MetricType::Gauge),
            Measure::Flag(flag) => (Value::BoolValue(flag), "bool", MetricType::Gauge),
        };
        Self { value: Some(value), unit: unit.into(), r#type: kind.into() }
    }
}

impl From<&Failure<'_>> for Error {
    fn from(failure: &Failure<'_>) -> Self {
        Self {
            error_code: failure.code.into(),
            message: failure.message.into(),
            severity: failure.severity.into(),
            context: [("node".to_owned(), failure.node.to_owned())].into(),
            suggestions: failure.suggestions.iter().map(|text| (*text).to_owned()).collect(),
            ..Default::default()
        }
    }
}
