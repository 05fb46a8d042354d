//! What is done to everything before it is encoded: secrets out, long texts cut, numbers as they will be read back.
//!
//! It works on values, never on JSON that is already text: a pattern must not reach across members.
use crate::redact::Redactor;
use dashstream_proto::telemetry::{
    AttributeValue, Error, Event, Metrics, TokenChunk, ToolExecution, attribute_value::Value as Attribute,
    metric_value::Value as Metric,
};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// How much of a text is shown in its stead, bytes.
const PREVIEW_BYTES: usize = 256;

/// Cleans values and messages.
#[derive(Clone, Debug)]
pub(crate) struct Cleaner {
    redactor: Redactor,
    text_bytes_max: usize,
}

impl Cleaner {
    /// Texts longer than `text_bytes_max` are cut.
    pub(crate) fn new(redactor: Redactor, text_bytes_max: usize) -> Self {
        Self { redactor, text_bytes_max }
    }

    /// Whether a text says a secret.
    pub(crate) fn is_clean(&self, text: &str) -> bool {
        self.redactor.redacted(text) == text
    }

    /// Cleans a text in place. What is too long keeps its beginning and says how long it was.
    pub(crate) fn text(&self, text: &mut String) {
        if let std::borrow::Cow::Owned(clean) = self.redactor.redacted(text) {
            *text = clean;
        }
        if text.len() > self.text_bytes_max {
            let bytes = text.len();
            text.truncate(text.floor_char_boundary(self.text_bytes_max.min(PREVIEW_BYTES)));
            text.push_str(&format!("... ({bytes} bytes)"));
        }
    }

    /// Cleans a value in place, names of members too. A text that is too long becomes its hash, length and beginning;
    /// -0.0 becomes 0.0, since the two are equal to whoever compares values.
    pub(crate) fn value(&self, value: &mut Value) {
        match value {
            Value::Null | Value::Bool(_) => {}
            Value::Number(number) => {
                if number.is_f64() && number.as_f64() == Some(0.0) {
                    *value = Value::from(0.0);
                }
            }
            Value::String(text) => {
                if let std::borrow::Cow::Owned(clean) = self.redactor.redacted(text) {
                    *text = clean;
                }
                if text.len() > self.text_bytes_max {
                    *value = shortened(text);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.value(item)),
            Value::Object(members) => {
                members.values_mut().for_each(|member| self.value(member));
                if !members.keys().all(|name| self.is_clean(name) && name.len() <= self.text_bytes_max) {
                    *members =
                        std::mem::take(members).into_iter().fold(Map::new(), |mut clean, (name, member)| {
                            clean.insert(self.name(name, |taken| clean.contains_key(taken)), member);
                            clean
                        });
                }
            }
        }
    }

    /// A clean name that is not taken yet.
    fn name(&self, mut name: String, taken: impl Fn(&str) -> bool) -> String {
        self.text(&mut name);
        let numbered = (2..).map(|number| format!("{name} ({number})"));
        let mut names = std::iter::once(name.clone()).chain(numbered);
        names.find(|name| !taken(name)).unwrap_or_default()
    }

    fn map<V>(&self, map: &mut BTreeMap<String, V>, value: impl Fn(&mut V)) {
        map.values_mut().for_each(value);
        if !map.keys().all(|name| self.is_clean(name) && name.len() <= self.text_bytes_max) {
            *map = std::mem::take(map).into_iter().fold(BTreeMap::new(), |mut clean, (name, member)| {
                clean.insert(self.name(name, |taken| clean.contains_key(taken)), member);
                clean
            });
        }
    }

    fn texts(&self, map: &mut BTreeMap<String, String>) {
        self.map(map, |text| self.text(text));
    }

    fn bytes(&self, bytes: &mut Vec<u8>) {
        let mut text = String::from_utf8_lossy(bytes).into_owned();
        if !self.is_clean(&text) || bytes.len() > self.text_bytes_max {
            self.text(&mut text);
            *bytes = text.into_bytes();
        }
    }

    fn attribute(&self, attribute: &mut AttributeValue) {
        match &mut attribute.value {
            Some(Attribute::StringValue(text)) => self.text(text),
            Some(Attribute::BytesValue(bytes)) => self.bytes(bytes),
            Some(Attribute::ArrayValue(array)) => {
                array.values.iter_mut().for_each(|item| self.attribute(item))
            }
            Some(Attribute::MapValue(map)) => self.map(&mut map.values, |member| self.attribute(member)),
            Some(Attribute::IntValue(_) | Attribute::FloatValue(_) | Attribute::BoolValue(_)) | None => {}
        }
    }

    pub(crate) fn event(&self, event: &mut Event) {
        self.text(&mut event.node_id);
        self.text(&mut event.llm_request_id);
        self.map(&mut event.attributes, |attribute| self.attribute(attribute));
    }

    pub(crate) fn token(&self, token: &mut TokenChunk) {
        for text in [&mut token.request_id, &mut token.text, &mut token.model] {
            self.text(text);
        }
    }

    /// All but arguments and result, which are cleaned as values.
    pub(crate) fn tool(&self, tool: &mut ToolExecution) {
        for text in [&mut tool.call_id, &mut tool.tool_name, &mut tool.error] {
            self.text(text);
        }
        if let Some(error) = &mut tool.error_details {
            self.error(error);
        }
    }

    pub(crate) fn metrics(&self, metrics: &mut Metrics) {
        for text in [&mut metrics.scope, &mut metrics.scope_id] {
            self.text(text);
        }
        self.texts(&mut metrics.tags);
        self.map(&mut metrics.metrics, |metric| {
            self.text(&mut metric.unit);
            match &mut metric.value {
                Some(Metric::StringValue(text)) => self.text(text),
                Some(Metric::BytesValue(bytes)) => self.bytes(bytes),
                Some(Metric::IntValue(_) | Metric::FloatValue(_) | Metric::BoolValue(_)) | None => {}
            }
        });
    }

    pub(crate) fn error(&self, error: &mut Error) {
        let texts =
            [&mut error.error_code, &mut error.message, &mut error.stack_trace, &mut error.exception_type];
        texts.into_iter().for_each(|text| self.text(text));
        self.texts(&mut error.context);
        error.suggestions.iter_mut().for_each(|text| self.text(text));
    }
}

/// What stands for a text that is too long.
fn shortened(text: &str) -> Value {
    let hash: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let preview = &text[..text.floor_char_boundary(PREVIEW_BYTES)];
    json!({ "sha256": hash, "length": text.len(), "preview": preview })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaner() -> Cleaner {
        Cleaner::new(Redactor::new(&[]).unwrap(), 1_000)
    }

    #[test]
    fn patterns_do_not_reach_across_members() {
        let mut state = json!({ "url": "http://x/y", "note": "hello: world", "email": "bob@example.com" });
        let before = state.clone();
        cleaner().value(&mut state);
        assert_eq!(state, before);
    }

    #[test]
    fn names_are_cleaned_and_stay_apart() {
        let mut state = json!({});
        for last in ["1", "2"] {
            state[format!("sk-{}{last}", "a".repeat(20))] = json!(last);
        }
        cleaner().value(&mut state);
        assert_eq!(state, json!({ "[OPENAI_KEY]": "1", "[OPENAI_KEY] (2)": "2" }));
    }

    #[test]
    fn a_long_text_becomes_its_hash_length_and_beginning() {
        let mut state = json!({ "page": "ü".repeat(501) });
        cleaner().value(&mut state);
        assert_eq!(state["page"]["length"], 1_002);
        assert_eq!(state["page"]["preview"], "ü".repeat(128));
        assert_eq!(state["page"]["sha256"].as_str().map(str::len), Some(64));
        let mut text = "ü".repeat(501);
        cleaner().text(&mut text);
        assert_eq!(text, format!("{}... (1002 bytes)", "ü".repeat(128)));
    }

    #[test]
    fn a_secret_on_the_edge_of_a_cut_is_replaced_before() {
        let mut text = format!("{}sk-{}", "x".repeat(240), "a".repeat(1_000));
        cleaner().text(&mut text);
        assert_eq!(text, format!("{}[OPENAI_KEY]", "x".repeat(240)));
    }

    #[test]
    fn zero_has_no_sign() {
        let mut state = json!([-0.0, 0.0, 0, -1.5]);
        cleaner().value(&mut state);
        assert_eq!(state.to_string(), "[0.0,0.0,0,-1.5]");
    }
}
