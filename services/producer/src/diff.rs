//! From one published state to the next.
use dashstream_core::canonical::canonical_json;
use dashstream_proto::telemetry::{DiffOperation, diff_operation::OpType};
use json_patch::{PatchOperation, diff};
use serde_json::Value;

/// How a state is published.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    /// Against the state that was published before it. None where nothing changed.
    Patch(Vec<DiffOperation>),
    /// As a whole.
    Full,
}

/// The smaller of patch and whole state. `canonical` is the text of the state after.
pub(crate) fn body(before: Option<&Value>, after: &Value, canonical: &str) -> Body {
    let Some(before) = before else { return Body::Full };
    let operations: Vec<_> = diff(before, after).0.into_iter().map(operation).collect();
    if operations.iter().map(size).sum::<usize>() > canonical.len() {
        Body::Full
    } else {
        Body::Patch(operations)
    }
}

/// Bytes on the wire, about: each field has a tag and a length.
fn size(operation: &DiffOperation) -> usize {
    operation.path.len() + operation.value.len() + operation.from.len() + 12
}

fn operation(operation: PatchOperation) -> DiffOperation {
    let (op, path, value, from) = match operation {
        PatchOperation::Add(add) => (OpType::Add, add.path, Some(add.value), None),
        PatchOperation::Remove(remove) => (OpType::Remove, remove.path, None, None),
        PatchOperation::Replace(replace) => (OpType::Replace, replace.path, Some(replace.value), None),
        PatchOperation::Move(moved) => (OpType::Move, moved.path, None, Some(moved.from)),
        PatchOperation::Copy(copy) => (OpType::Copy, copy.path, None, Some(copy.from)),
        PatchOperation::Test(test) => (OpType::Test, test.path, Some(test.value), None),
    };
    DiffOperation {
        op: op.into(),
        path: path.to_string(),
        value: value.map(|value| canonical_json(&value).into_bytes()).unwrap_or_default(),
        from: from.map(|from| from.to_string()).unwrap_or_default(),
        ..Default::default()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// What a reader does with a patch.
    pub(crate) fn patched(mut state: Value, operations: &[DiffOperation]) -> Value {
        let operations: Vec<_> = operations
            .iter()
            .map(|operation| {
                let value: Value = serde_json::from_slice(&operation.value).unwrap_or_default();
                let op = operation.op().as_str_name().trim_start_matches("OP_TYPE_").to_lowercase();
                json!({ "op": op, "path": operation.path, "from": operation.from, "value": value })
            })
            .collect();
        let patch: json_patch::Patch = serde_json::from_value(operations.into()).unwrap();
        json_patch::patch(&mut state, &patch).unwrap();
        state
    }

    pub(crate) fn states() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-c~/\u{e000}\u{1f980}]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c~/]{0,2}", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn a_small_change_of_a_large_state_is_a_patch_and_anything_else_the_whole() {
        let before = json!({ "notes": vec!["a note of some length"; 50], "n": 0 });
        let mut after = before.clone();
        after["n"] = json!(1);
        let canonical = canonical_json(&after);
        let Body::Patch(operations) = body(Some(&before), &after, &canonical) else { panic!("no patch") };
        assert_eq!((operations.len(), &*operations[0].path, &*operations[0].value), (1, "/n", &b"1"[..]));
        assert_eq!(body(None, &after, &canonical), Body::Full);
        assert_eq!(body(Some(&after), &after, &canonical), Body::Patch(vec![]));
        assert_eq!(body(Some(&before), &json!({ "n": 1 }), r#"{"n":1}"#), Body::Full);
    }

    proptest! {
        #[test]
        fn a_patch_leads_from_the_state_before_to_the_one_after(before in states(), after in states()) {
            match body(Some(&before), &after, &canonical_json(&after)) {
                Body::Full => {}
                Body::Patch(operations) => prop_assert_eq!(patched(before, &operations), after),
            }
        }
    }
}
