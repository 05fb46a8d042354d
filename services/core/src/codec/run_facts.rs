//! What a message says of its run: status, graph, errors, tokens, cost.
use super::{Member, wire};
use dashstream_proto::log::v1::{RunFacts, RunStatus};
use wire::{
    EventType, attribute_value::Value, error::Severity, metric_value, tool_execution::ExecutionStage,
};

/// Reads them off a message. What a message does not say stays at its default.
pub(super) fn of(member: &Member) -> RunFacts {
    match member {
        Member::Event(event) => of_event(event),
        Member::EventBatch(batch) => batch.events.iter().map(of_event).fold(RunFacts::default(), later),
        Member::StateDiff(diff) => {
            RunFacts { whole_state: !diff.full_state.is_empty(), ..Default::default() }
        }
        Member::Checkpoint(_) => RunFacts { whole_state: true, ..Default::default() },
        Member::Error(error) => {
            let counts =
                matches!(error.severity(), Severity::Error | Severity::Fatal | Severity::Unspecified);
            RunFacts { errors: counts.into(), ..Default::default() }
        }
        Member::ToolExecution(tool) => {
            RunFacts { errors: (tool.stage() == ExecutionStage::Failed).into(), ..Default::default() }
        }
        Member::TokenChunk(chunk) => {
            let tokens = chunk.stats.map_or(0, |stats| u64::from(stats.total_tokens));
            RunFacts { tokens, ..Default::default() }
        }
        Member::Metrics(metrics) => RunFacts { cost: cost(metrics), ..Default::default() },
        // It sums up what other records said.
        Member::ExecutionTrace(_) => RunFacts::default(),
    }
}

fn of_event(event: &wire::Event) -> RunFacts {
    let kind = event.event_type();
    let status = match kind {
        EventType::GraphStart | EventType::HumanResume => RunStatus::Running,
        EventType::GraphEnd => RunStatus::Completed,
        EventType::GraphError => RunStatus::Failed,
        EventType::HumanInterrupt => RunStatus::Interrupted,
        EventType::Unspecified
        | EventType::NodeStart
        | EventType::NodeEnd
        | EventType::NodeError
        | EventType::EdgeTraversal
        | EventType::ConditionalBranch
        | EventType::ParallelStart
        | EventType::ParallelEnd
        | EventType::LlmStart
        | EventType::LlmEnd
        | EventType::LlmError
        | EventType::LlmRetry
        | EventType::ToolStart
        | EventType::ToolEnd
        | EventType::ToolError
        | EventType::CheckpointSave
        | EventType::CheckpointLoad
        | EventType::CheckpointDelete
        | EventType::MemorySave
        | EventType::MemoryLoad
        | EventType::NodeProgress
        | EventType::NodeThinking
        | EventType::NodeSubstep
        | EventType::NodeWarning
        | EventType::OptimizationStart
        | EventType::OptimizationEnd => RunStatus::Unspecified,
    };
    let failed = [EventType::GraphError, EventType::NodeError, EventType::LlmError, EventType::ToolError];
    let started = kind == EventType::GraphStart;
    RunFacts {
        status: status.into(),
        graph_name: text(event, "graph_name").unwrap_or_default().to_owned(),
        errors: failed.contains(&kind).into(),
        tokens: if kind == EventType::LlmEnd { whole(event, "total_tokens") } else { 0 },
        cost: if kind == EventType::LlmEnd { number(event, "cost") } else { 0.0 },
        whole_state: started && text(event, "initial_state_json").is_some(),
    }
}

/// Facts of two events of one record, in their order.
fn later(before: RunFacts, after: RunFacts) -> RunFacts {
    RunFacts {
        status: if after.status == 0 { before.status } else { after.status },
        graph_name: if after.graph_name.is_empty() { before.graph_name } else { after.graph_name },
        errors: before.errors.saturating_add(after.errors),
        tokens: before.tokens.saturating_add(after.tokens),
        cost: before.cost + after.cost,
        whole_state: before.whole_state || after.whole_state,
    }
}

fn attribute<'a>(event: &'a wire::Event, name: &str) -> Option<&'a Value> {
    event.attributes.get(name)?.value.as_ref()
}

fn text<'a>(event: &'a wire::Event, name: &str) -> Option<&'a str> {
    match attribute(event, name)? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(_)
        | Value::FloatValue(_)
        | Value::BoolValue(_)
        | Value::BytesValue(_)
        | Value::ArrayValue(_)
        | Value::MapValue(_) => None,
    }
}

fn whole(event: &wire::Event, name: &str) -> u64 {
    match attribute(event, name) {
        Some(Value::IntValue(value)) => u64::try_from(*value).unwrap_or(0),
        _ => 0,
    }
}

fn number(event: &wire::Event, name: &str) -> f64 {
    match attribute(event, name) {
        Some(Value::FloatValue(value)) if value.is_finite() && *value > 0.0 => *value,
        Some(Value::IntValue(value)) if *value > 0 => *value as f64,
        _ => 0.0,
    }
}

/// The metric `cost`, wherever it is finite and positive.
fn cost(metrics: &wire::Metrics) -> f64 {
    match metrics.metrics.get("cost").and_then(|metric| metric.value.as_ref()) {
        Some(metric_value::Value::FloatValue(value)) if value.is_finite() && *value > 0.0 => *value,
        Some(metric_value::Value::IntValue(value)) if *value > 0 => *value as f64,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn event(kind: EventType, attributes: &[(&str, Value)]) -> wire::Event {
        let attributes = attributes
            .iter()
            .map(|(name, value)| ((*name).to_owned(), wire::AttributeValue { value: Some(value.clone()) }));
        wire::Event {
            event_type: kind.into(),
            attributes: attributes.collect::<BTreeMap<_, _>>(),
            ..Default::default()
        }
    }

    #[test]
    fn a_run_begins_waits_and_ends() {
        for (kind, status, errors) in [
            (EventType::GraphStart, RunStatus::Running, 0),
            (EventType::HumanInterrupt, RunStatus::Interrupted, 0),
            (EventType::HumanResume, RunStatus::Running, 0),
            (EventType::NodeError, RunStatus::Unspecified, 1),
            (EventType::GraphError, RunStatus::Failed, 1),
            (EventType::GraphEnd, RunStatus::Completed, 0),
        ] {
            let facts = of(&Member::Event(event(kind, &[])));
            assert_eq!((facts.status(), facts.errors), (status, errors), "{kind:?}");
        }
    }

    #[test]
    fn a_batch_says_what_its_last_word_is_and_the_sum_of_the_rest() {
        let tokens = [("total_tokens", Value::IntValue(7)), ("cost", Value::FloatValue(0.5))];
        let name = [("graph_name", Value::StringValue("rag".into()))];
        let events = vec![
            event(EventType::GraphStart, &name),
            event(EventType::LlmEnd, &tokens),
            event(EventType::LlmEnd, &tokens),
            event(EventType::GraphEnd, &[]),
        ];
        let facts = of(&Member::EventBatch(wire::EventBatch { header: None, events }));
        assert_eq!((facts.status(), facts.graph_name.as_str()), (RunStatus::Completed, "rag"));
        assert_eq!((facts.tokens, facts.cost), (14, 1.0));
    }

    #[test]
    fn numbers_that_make_no_sense_count_as_nothing() {
        for value in [
            Value::FloatValue(f64::NAN),
            Value::FloatValue(-1.0),
            Value::FloatValue(f64::INFINITY),
            Value::IntValue(-5),
        ] {
            let facts = of(&Member::Event(event(
                EventType::LlmEnd,
                &[("cost", value.clone()), ("total_tokens", value)],
            )));
            assert_eq!((facts.cost, facts.tokens), (0.0, 0));
        }
    }
}
