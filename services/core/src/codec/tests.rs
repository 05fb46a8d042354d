use super::*;
use proptest::prelude::*;
use serde_json::Value;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../proto/vectors/telemetry.json")).unwrap()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

#[test]
fn every_golden_message_decodes_in_every_framing_and_encodes_to_the_same_message() {
    for vector in vectors()["messages"].as_array().unwrap() {
        let name = vector["name"].as_str().unwrap();
        let expected = wire::DashStreamMessage::decode(&*bytes(&vector["protobuf_hex"])).unwrap();
        let mut framings = 0;
        for framing in ["protobuf_hex", "framed_plain_hex", "framed_zstd_hex", "unframed_zstd_hex"] {
            if vector[framing].is_null() {
                continue;
            }
            framings += 1;
            let payload = bytes(&vector[framing]);
            let mut decoded = decode(Some(&payload), Limits::default()).unwrap();
            if framing == "framed_zstd_hex" {
                // the only difference that framing makes
                let mut marked = expected.clone();
                mark_compressed(&mut marked);
                assert!(decoded == marked || decoded == expected, "{name} {framing}");
                decoded = expected.clone();
            }
            assert_eq!(decoded, expected, "{name} {framing}");
        }
        assert!(framings >= 2, "{name}");
        assert_eq!(
            decode(Some(&encode(&expected, usize::MAX)), Limits::default()).unwrap(),
            expected,
            "{name}"
        );
        // protobuf does not fix the order of map entries, but the length is the same in any order
        assert_eq!(expected.encoded_len(), bytes(&vector["protobuf_hex"]).len(), "{name}");
        facts(Some(&bytes(&vector["framed_plain_hex"])), Limits::default()).unwrap();
    }
}

#[test]
fn golden_facts_are_those_of_the_json() {
    for vector in vectors()["messages"].as_array().unwrap() {
        let name = vector["name"].as_str().unwrap();
        let member = vector["json"].as_object().unwrap().values().next().unwrap();
        let header = &member["header"];
        let facts = facts(Some(&bytes(&vector["framed_plain_hex"])), Limits::default()).unwrap();
        assert_eq!(facts.tenant_id, header["tenant_id"].as_str().unwrap_or(""), "{name}");
        if name != "event_batch_two_threads" {
            let thread = header["thread_id"].as_str().or(member["thread_id"].as_str()).unwrap_or("");
            assert_eq!(facts.thread_id, thread, "{name}");
            let sequence = header["sequence"].as_str().map(|text| text.parse::<u64>().unwrap());
            assert_eq!(facts.sequence, sequence, "{name}");
        } else {
            assert_eq!(facts.more_threads.len(), 1, "{name}: {facts:?}");
            assert!(facts.sequence.is_some(), "{name}");
        }
    }
}

#[test]
fn every_broken_golden_payload_is_refused_for_its_own_reason() {
    let mut seen = Vec::new();
    for vector in vectors()["undecodable"].as_array().unwrap() {
        let name = vector["name"].as_str().unwrap();
        let error = facts(Some(&bytes(&vector["hex"])), Limits::default()).unwrap_err();
        seen.push((name.to_owned(), error.label()));
    }
    let seen: Vec<_> = seen.iter().map(|(name, label)| (name.as_str(), *label)).collect();
    assert_eq!(
        seen,
        [
            ("empty_payload", "empty"),
            ("only_frame_byte", "no_member"),
            ("unknown_frame_byte", "protobuf"),
            ("truncated", "protobuf"),
            ("zstd_truncated", "compression"),
            ("zstd_garbage", "compression"),
            ("zstd_bomb_1GiB_declared", "inflates_too_large"),
            ("invalid_utf8_thread", "protobuf"),
        ]
    );
    assert_eq!(facts(None, Limits::default()), Err(Undecodable::Missing));
}

#[test]
fn limits_are_exact_and_a_bomb_without_a_declared_size_stops_at_them() {
    let message = wire::DashStreamMessage {
        message: Some(Member::TokenChunk(wire::TokenChunk { text: "x".repeat(1_000), ..Default::default() })),
    };
    let size = message.encoded_len();
    let plain = encode(&message, usize::MAX);
    assert!(decode(Some(&plain), Limits { message_bytes_max: size }).is_ok());
    assert_eq!(
        decode(Some(&plain), Limits { message_bytes_max: size - 1 }),
        Err(Undecodable::TooLarge { bytes: size + 1, max: size })
    );
    let packed = encode(&message, 512);
    assert_eq!(packed[0], ZSTD);
    assert_eq!(
        decode(Some(&packed), Limits { message_bytes_max: size - 1 }),
        Err(Undecodable::InflatesTooLarge { max: size - 1 })
    );
    // a stream declares no size
    let streamed = framed(ZSTD, &zstd::stream::encode_all(&*vec![0_u8; 1 << 20], 3).unwrap());
    assert_eq!(
        decode(Some(&streamed), Limits { message_bytes_max: 4_096 }),
        Err(Undecodable::InflatesTooLarge { max: 4_096 })
    );
}

#[test]
fn a_thread_id_is_refused_when_too_long_and_never_cut() {
    let message = |bytes| {
        let header = wire::Header { thread_id: "x".repeat(bytes), ..Default::default() };
        let event = wire::Event { header: Some(header), ..Default::default() };
        encode(&wire::DashStreamMessage { message: Some(Member::Event(event)) }, 512)
    };
    let most = facts(Some(&message(THREAD_ID_BYTES_MAX)), Limits::default()).unwrap();
    assert_eq!(most.thread_id.len(), THREAD_ID_BYTES_MAX);
    let error = facts(Some(&message(THREAD_ID_BYTES_MAX + 1)), Limits::default()).unwrap_err();
    assert_eq!(error.to_string(), "a thread id has 1025 bytes: expected at most 1024");
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(payload in prop::collection::vec(any::<u8>(), 0..256)) {
        let _judged = facts(Some(&payload), Limits { message_bytes_max: 1 << 16 });
    }

    #[test]
    fn what_is_encoded_decodes(text in ".{0,2000}", sequence in any::<u64>(), above in 0_usize..1_000) {
        let header = wire::Header { thread_id: "t".into(), sequence, ..Default::default() };
        let chunk = wire::TokenChunk { header: Some(header), text: text.clone(), ..Default::default() };
        let message = wire::DashStreamMessage { message: Some(Member::TokenChunk(chunk)) };
        let payload = encode(&message, above);
        let facts = facts(Some(&payload), Limits::default()).unwrap();
        prop_assert_eq!(facts.sequence, (sequence > 0).then_some(sequence));
        let Some(Member::TokenChunk(back)) = decode(Some(&payload), Limits::default()).unwrap().message else {
            panic!("another kind")
        };
        prop_assert_eq!(back.text, text);
    }
}

#[test]
fn operations_of_a_diff_have_their_zero_values_written_out() {
    let operation = wire::DiffOperation { path: "/a".into(), value: b"1".to_vec(), ..Default::default() };
    let diff = wire::StateDiff { operations: vec![operation], ..Default::default() };
    let payload = encode(&wire::DashStreamMessage { message: Some(Member::StateDiff(diff)) }, 512);
    let explicit = [0x08, 0x00, 0x12, 2, b'/', b'a', 0x1A, 1, b'1', 0x28, 0x00];
    assert!(payload.windows(explicit.len()).any(|window| window == explicit), "{payload:02x?}");
}
