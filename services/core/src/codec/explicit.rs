//! State diffs with their zero values written out.
//!
//! The operation ADD and the encoding JSON are zero, which protobuf leaves off. The predecessor's browser loses what
//! was left off on the way out of its worker, and then misreads the operation. Written out, they are legal to every
//! reader.
use super::wire;
use prost::Message;

/// A DashStreamMessage that is a state diff.
#[derive(Clone, PartialEq, Message)]
struct DashStreamMessage {
    #[prost(message, optional, tag = "2")]
    state_diff: Option<StateDiff>,
}

#[derive(Clone, PartialEq, Message)]
struct StateDiff {
    #[prost(message, optional, tag = "1")]
    header: Option<wire::Header>,
    #[prost(bytes = "vec", tag = "2")]
    base_checkpoint_id: Vec<u8>,
    #[prost(message, repeated, tag = "3")]
    operations: Vec<DiffOperation>,
    #[prost(bytes = "vec", tag = "4")]
    state_hash: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    full_state: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct DiffOperation {
    #[prost(int32, optional, tag = "1")]
    op: Option<i32>,
    #[prost(string, tag = "2")]
    path: String,
    #[prost(bytes = "vec", tag = "3")]
    value: Vec<u8>,
    #[prost(string, tag = "4")]
    from: String,
    #[prost(int32, optional, tag = "5")]
    encoding: Option<i32>,
}

/// The protobuf bytes of a message that is this state diff.
pub(super) fn encode(diff: &wire::StateDiff) -> Vec<u8> {
    let operations = diff.operations.iter().map(|operation| DiffOperation {
        op: Some(operation.op),
        path: operation.path.clone(),
        value: operation.value.clone(),
        from: operation.from.clone(),
        encoding: Some(operation.encoding),
    });
    let state_diff = StateDiff {
        header: diff.header.clone(),
        base_checkpoint_id: diff.base_checkpoint_id.clone(),
        operations: operations.collect(),
        state_hash: diff.state_hash.clone(),
        full_state: diff.full_state.clone(),
    };
    DashStreamMessage { state_diff: Some(state_diff) }.encode_to_vec()
}
