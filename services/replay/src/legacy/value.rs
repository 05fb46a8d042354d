//! What the rows of threads hold.
use super::names::bounded;
use bytes::Bytes;
use dashstream_core::{
    codec::{Limits, facts},
    position::{Offset, Partition},
};

/// Bytes of a position in front of a payload.
const POSITION_LEN: usize = 12;

/// The position and the payload of a row, if its payload is of the [`bounded`] thread id `thread`.
///
/// The oldest rows have no position in front. Which kind a row is can't be read off its first bytes with
/// certainty, but only one reading of it decodes to a record of the thread.
pub(super) fn of_thread(value: &Bytes, thread: &str) -> Option<(Option<(Partition, Offset)>, Bytes)> {
    if let Some(position) = position(value) {
        let payload = value.slice(POSITION_LEN..);
        if concerns(&payload, thread) {
            return Some((Some(position), payload));
        }
    }
    concerns(value, thread).then(|| (None, value.clone()))
}

fn position(value: &[u8]) -> Option<(Partition, Offset)> {
    let (partition, rest) = value.split_first_chunk()?;
    let (offset, _) = rest.split_first_chunk()?;
    let partition = Partition::new(i32::from_le_bytes(*partition)).ok()?;
    Some((partition, Offset::from_kafka(i64::from_le_bytes(*offset)).ok()?))
}

fn concerns(payload: &[u8], thread: &str) -> bool {
    let Ok(facts) = facts(Some(payload), Limits::default()) else { return false };
    let others = facts.more_threads.iter().map(|(id, _)| id);
    std::iter::once(&facts.thread_id).chain(others).any(|id| bounded(id) == thread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dashstream_core::codec::encode;
    use dashstream_proto::telemetry as wire;

    fn payload(thread_id: &str, compress_above: usize) -> Vec<u8> {
        let header = wire::Header { thread_id: thread_id.into(), sequence: 9, ..Default::default() };
        let event = wire::Event { header: Some(header), node_id: "n".repeat(600), ..Default::default() };
        let message = wire::dash_stream_message::Message::Event(event);
        encode(&wire::DashStreamMessage { message: Some(message) }, compress_above)
    }

    fn packed(partition: i32, offset: i64, payload: &[u8]) -> Bytes {
        [&partition.to_le_bytes()[..], &offset.to_le_bytes(), payload].concat().into()
    }

    #[test]
    fn positions_are_the_predecessors() {
        let value = packed(3, 1_234_567, &payload("t", 0));
        assert_eq!(value[..12], [3, 0, 0, 0, 0x87, 0xd6, 0x12, 0, 0, 0, 0, 0]);
        let (position, found) = of_thread(&value, "t").unwrap();
        assert_eq!(position, Some((Partition::new(3).unwrap(), Offset::new(1_234_567).unwrap())));
        assert_eq!(found, payload("t", 0));
    }

    #[test]
    fn rows_with_and_without_a_position_are_told_apart() {
        for compress_above in [0, usize::MAX] {
            let payload = payload("t", compress_above);
            for whole in [&payload[..], &payload[1..]] {
                let value = Bytes::copy_from_slice(whole);
                assert_eq!(of_thread(&value, "t"), Some((None, value.clone())), "{compress_above}");
                // each of these begins like a framed payload, or like an unframed one
                for partition in [0, 1, 10, 0x0a00, 0x0a01, 0x2801, 0x3b0a, i32::MAX] {
                    for offset in [0, 0x0100_0000_0000_0001, i64::MAX] {
                        let (position, found) = of_thread(&packed(partition, offset, whole), "t").unwrap();
                        let (at, of) = position.unwrap();
                        assert_eq!((at.get(), of.to_kafka(), &found[..]), (partition, offset, whole));
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_of_another_thread_is_none() {
        assert_eq!(of_thread(&packed(3, 7, &payload("u", 0)), "t"), None);
        for nonsense in ["", "short", "twelve bytes", "thirteen byte"] {
            assert_eq!(of_thread(&Bytes::from_static(nonsense.as_bytes()), "t"), None);
        }
        let short = [0x00, 0x0a, 0x05, 0x0a, 0x03, 0x22, 0x01, b't'];
        let short = Bytes::copy_from_slice(&short);
        assert_eq!(of_thread(&short, "t"), Some((None, short.clone())));
        assert!(of_thread(&packed(0, 0, &payload("  t ", 0)), "t").is_some());
    }
}
