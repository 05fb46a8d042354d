//! The canonical text of a state, and the hash over it: what a producer publishes beside a state and whoever rebuilds
//! that state computes again.
//!
//! Compact JSON; members ascending by the UTF-8 bytes of their names; integers in decimal; floats by their shortest
//! digits that read back the same, with a fraction (`1.0`) for decimal exponents from -5 to 15 and as `1e+16`,
//! `1.5e-6` otherwise. Laid out here rather than by `serde_json`, whose floats differ between its releases.
use serde_json::{Number, Value};
use sha2::{Digest, Sha256};

/// The canonical text of a state.
pub fn canonical_json(state: &Value) -> String {
    let mut text = String::new();
    write_value(state, &mut text);
    text
}

/// SHA-256 over the canonical text of a state.
pub fn state_hash(state: &Value) -> [u8; 32] {
    text_hash(&canonical_json(state))
}

/// SHA-256 over a canonical text.
pub fn text_hash(canonical: &str) -> [u8; 32] {
    Sha256::digest(canonical.as_bytes()).into()
}

fn write_value(value: &Value, text: &mut String) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(true) => text.push_str("true"),
        Value::Bool(false) => text.push_str("false"),
        Value::Number(number) => write_number(number, text),
        Value::String(string) => write_string(string, text),
        Value::Array(items) => {
            text.push('[');
            separated(items, text, write_value);
            text.push(']');
        }
        Value::Object(members) => {
            // The map may keep another order, by a feature that some other crate switched on.
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            text.push('{');
            separated(members, text, |(name, value), text| {
                write_string(name, text);
                text.push(':');
                write_value(value, text);
            });
            text.push('}');
        }
    }
}

fn separated<T>(items: impl IntoIterator<Item = T>, text: &mut String, write: impl Fn(T, &mut String)) {
    for (at, item) in items.into_iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        write(item, text);
    }
}

fn write_number(number: &Number, text: &mut String) {
    match number.as_f64() {
        Some(float) if number.is_f64() => text.push_str(&float_text(float)),
        _ => text.push_str(&number.to_string()),
    }
}

/// Only finite floats are numbers of JSON.
fn float_text(float: f64) -> String {
    // Both forms of the standard library have the shortest digits that read back the same.
    let scientific = format!("{float:e}");
    let exponent: i32 = scientific.rsplit('e').next().and_then(|text| text.parse().ok()).unwrap_or_default();
    match exponent {
        -5..=15 => {
            let fixed = float.to_string();
            if fixed.contains('.') { fixed } else { fixed + ".0" }
        }
        16.. => scientific.replace('e', "e+"),
        _ => scientific,
    }
}

fn write_string(string: &str, text: &mut String) {
    text.push('"');
    for char in string.chars() {
        match char {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            control @ ..'\u{20}' => text.push_str(&format!("\\u{:04x}", u32::from(control))),
            char => text.push(char),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../../proto/vectors/telemetry.json")).unwrap()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn golden_states_have_their_canonical_text_and_hash() {
        let vectors = vectors();
        let plain = vectors["state_hashes"].as_array().unwrap().iter();
        let plain = plain.map(|vector| (vector, vector["state"].clone()));
        // Given as text, since not every reader of the vectors keeps their numbers.
        let exact = vectors["exact_state_hashes"].as_array().unwrap().iter();
        let exact =
            exact.map(|vector| (vector, serde_json::from_str(vector["text"].as_str().unwrap()).unwrap()));
        let mut seen = 0;
        for (vector, state) in plain.chain(exact) {
            assert_eq!(canonical_json(&state), vector["canonical"].as_str().unwrap());
            assert_eq!(hex(&state_hash(&state)), vector["sha256"].as_str().unwrap(), "{state}");
            seen += 1;
        }
        assert!(seen >= 15, "{seen} vectors");
    }

    #[test]
    fn floats_keep_their_value_and_their_form() {
        for (float, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.00001, "0.00001"),
            (1e-6, "1e-6"),
            (1.5e-6, "1.5e-6"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e21, "1.25e+21"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
        ] {
            assert_eq!(float_text(float), text);
        }
    }

    proptest! {
        #[test]
        fn canonical_floats_read_back_the_same(bits in any::<u64>()) {
            let float = f64::from_bits(bits);
            prop_assume!(float.is_finite());
            prop_assert_eq!(float_text(float).parse::<f64>().unwrap().to_bits(), bits);
        }

        #[test]
        fn canonical_strings_are_json_of_the_same_string(string in "\\PC{0,20}|[\u{0}-\u{7f}]{0,20}") {
            let mut text = String::new();
            write_string(&string, &mut text);
            prop_assert_eq!(serde_json::from_str::<String>(&text).unwrap(), string);
        }
    }
}
