use super::*;
use crate::{
    diff::tests::{patched, states},
    redact::Redactor,
};
use dashstream_core::canonical::state_hash;
use proptest::prelude::*;
use serde_json::json;

fn rules() -> Rules {
    Rules {
        cleaner: Cleaner::new(Redactor::new(&[]).unwrap(), 2_000),
        tenant_id: "acme".into(),
        publish_states: true,
        checkpoint_every: 0,
        record_bytes_max: 16 << 10,
    }
}

/// A thread, and all that it sent so far.
struct Writer {
    thread: Thread,
    rules: Rules,
    sent: Vec<Member>,
    dropped: Vec<(Kind, Dropped)>,
    degraded: Vec<Degraded>,
}

impl Writer {
    fn new(rules: Rules) -> Self {
        let thread = Thread::new("t-1".into(), "epoch".into());
        Self { thread, rules, sent: Vec::new(), dropped: Vec::new(), degraded: Vec::new() }
    }

    fn say(&mut self, signal: Signal) -> &mut Self {
        let mut last = self.sent.len() as u8;
        let mut ids = || {
            last += 1;
            [last; 16]
        };
        let mut stamps = Stamps { timestamp_us: 7, ids: &mut ids };
        let kind = signal.kind();
        let (outgoing, degraded) = self.thread.on(signal, &self.rules, &mut stamps);
        self.degraded.extend(degraded);
        for (at, outgoing) in outgoing.into_iter().enumerate() {
            let (of, payload) = match outgoing {
                Outgoing::Drop { kind, reason } => {
                    self.dropped.push((kind, reason));
                    (kind, None)
                }
                Outgoing::Send { kind, payload, .. } => (kind, Some(payload)),
            };
            assert!(at > 0 || of == kind, "the first message is of the signal's kind");
            if let Some(payload) = payload {
                assert!(payload.len() <= self.rules.record_bytes_max);
                self.sent
                    .push(codec::decode(Some(&payload), codec::Limits::default()).unwrap().message.unwrap());
            }
        }
        self
    }

    fn state(&mut self, state: &Value) -> &mut Self {
        self.say(Signal::State(Ok(state.clone())))
    }

    fn sequences(&self) -> Vec<u64> {
        let numbers = self.sent.iter().map(|member| {
            let payload = codec::encode(&DashStreamMessage { message: Some(member.clone()) }, usize::MAX);
            codec::facts(Some(&payload), codec::Limits::default()).unwrap().sequence.unwrap()
        });
        numbers.collect()
    }

    fn last_diff(&self) -> &StateDiff {
        let diffs = self.sent.iter().rev();
        diffs
            .flat_map(|member| if let Member::StateDiff(diff) = member { Some(diff) } else { None })
            .next()
            .expect("a state diff")
    }
}

type Loss = fn(&mut Writer);

fn started(state: &Value) -> Signal {
    let event = Event { event_type: EventType::GraphStart.into(), ..Default::default() };
    Signal::Started { event: Box::new(event), schema: None, state: Some(Ok(state.clone())) }
}

fn large() -> Value {
    // Hardly compressible.
    let text = |at: usize| Value::from(text_hash(&at.to_string()).map(|byte| format!("{byte:02x}")).concat());
    (0..1_000).map(text).collect::<Vec<_>>().into()
}

/// What a reader rebuilds, state by state, checking each hash.
#[derive(Default)]
struct Reader(Option<Value>);

impl Reader {
    fn read(&mut self, member: &Member) {
        if let Member::Event(event) = member {
            let state = event.attributes.get("initial_state_json").and_then(|state| state.value.as_ref());
            if let Some(Attribute::StringValue(state)) = state {
                self.0 = Some(serde_json::from_str(state).unwrap());
            }
        } else if let Member::StateDiff(diff) = member {
            let after = if diff.full_state.is_empty() {
                patched(self.0.take().expect("a diff needs a base"), &diff.operations)
            } else {
                serde_json::from_slice(&diff.full_state).unwrap()
            };
            assert_eq!(state_hash(&after).to_vec(), diff.state_hash, "{after}");
            self.0 = Some(after);
        } else if let Member::Checkpoint(checkpoint) = member {
            let state: Value = serde_json::from_slice(&checkpoint.state).unwrap();
            assert_eq!(Some(&state), self.0.as_ref());
            assert_eq!(state_hash(&state).to_vec(), checkpoint.checksum);
        }
    }
}

#[test]
fn numbers_count_from_one_and_what_is_refused_burns_its_own() {
    let mut writer = Writer::new(rules());
    writer.say(started(&json!({}))).say(Signal::Token(Default::default()));
    writer.thread.skip(Hole { burned: 3, state: false });
    writer.say(Signal::Error(Default::default()));
    assert_eq!(writer.sequences(), [1, 2, 6]);
}

#[test]
fn the_first_event_of_a_life_names_it() {
    let mut writer = Writer::new(rules());
    writer
        .say(Signal::Token(Default::default()))
        .say(Signal::Event(Event::default()))
        .say(Signal::Event(Event::default()));
    let named = writer.sent.iter().filter(
        |member| matches!(member, Member::Event(event) if event.attributes.get("producer_epoch") == Some(&text("epoch"))),
    );
    let named = named.count();
    assert_eq!((writer.sent.len(), named), (3, 1));
}

#[test]
fn a_state_after_a_lost_one_is_whole() {
    let before = json!({ "notes": vec!["a note"; 40], "n": 0 });
    let mut after = before.clone();
    after["n"] = json!(1);
    let losses: [(&str, Loss); 4] = [
        ("a state was refused", |writer| writer.thread.skip(Hole { burned: 1, state: true })),
        ("a state did not reach Kafka", |writer| writer.thread.on_failure(Carries::State)),
        ("a state was too large", |writer| {
            writer.state(&large());
        }),
        ("a state was none", |writer| {
            writer.say(Signal::State(Err("no JSON".into())));
        }),
    ];
    for (why, lose) in losses {
        let mut writer = Writer::new(rules());
        writer.say(started(&before));
        lose(&mut writer);
        writer.state(&after);
        assert!(!writer.last_diff().full_state.is_empty(), "{why}");
    }
    let mut writer = Writer::new(rules());
    writer.say(started(&before));
    writer.thread.skip(Hole { burned: 1, state: false });
    writer.thread.on_failure(Carries::NoState);
    writer.state(&after);
    assert!(writer.last_diff().full_state.is_empty(), "nothing of the state was lost");
}

#[test]
fn a_state_that_does_not_fit_is_said_to_be_unavailable() {
    let mut writer = Writer::new(rules());
    writer.say(started(&json!({}))).state(&large());
    assert_eq!(writer.dropped, [(Kind::StateDiff, Dropped::StateUnavailable)]);
    assert_eq!(writer.degraded, [Degraded::StateTooLarge]);
    let Some(Member::Event(warning)) = writer.sent.last() else { panic!("no warning") };
    assert_eq!(warning.event_type(), EventType::NodeWarning);
    assert_eq!(warning.attributes["state_unavailable"], text("state_too_large"));
    assert_eq!(writer.sequences(), [1, 3], "the state's own number is burned");
}

#[test]
fn an_initial_state_beside_which_nothing_fits_follows_by_itself() {
    let mut rules = rules();
    // As text it does not fit beside the rest; compressed it does by itself.
    rules.record_bytes_max = 64 << 10;
    let state = json!({ "rows": vec!["the same row again and again"; 3_000] });
    let mut writer = Writer::new(rules);
    writer.say(started(&state));
    assert!(matches!(&writer.sent[..], [Member::Event(event), Member::StateDiff(diff)]
        if !event.attributes.contains_key("initial_state_json") && !diff.full_state.is_empty()));
    assert_eq!(writer.degraded, [Degraded::InitialStateSplit]);
}

#[test]
fn a_first_state_that_does_not_fit_is_never_followed_by_a_patch() {
    let mut writer = Writer::new(rules());
    writer.say(started(&large())).state(&json!({ "n": 1 }));
    assert!(!writer.last_diff().full_state.is_empty());
}

#[test]
fn checkpoints_come_at_their_interval_and_diffs_name_the_last() {
    let mut writer = Writer::new(Rules { checkpoint_every: 10, ..rules() });
    writer.say(started(&json!({ "n": 0, "rest": "constant and of some length" })));
    let (mut ids, mut reader) = (vec![Vec::new()], Reader::default());
    for n in 1..=100 {
        writer.state(&json!({ "n": n, "rest": "constant and of some length" }));
    }
    for member in &writer.sent {
        reader.read(member);
        if let Member::Checkpoint(checkpoint) = member {
            ids.push(checkpoint.checkpoint_id.clone());
        } else if let Member::StateDiff(diff) = member {
            assert_eq!(Some(&diff.base_checkpoint_id), ids.last());
        }
    }
    assert_eq!(ids.len(), 1 + 10);
    let last: [u8; 16] = ids[10].clone().try_into().unwrap();
    writer.thread.on_failure(Carries::Checkpoint(last));
    writer.state(&json!({}));
    assert_eq!(writer.last_diff().base_checkpoint_id, [0; 0], "a lost checkpoint is no base");
}

#[test]
fn no_state_leaves_a_producer_that_withholds_them() {
    let canary = "a-canary-in-the-state";
    let mut writer = Writer::new(Rules { publish_states: false, checkpoint_every: 1, ..rules() });
    writer
        .say(started(&json!({ "secret": canary })))
        .state(&json!({ "secret": canary }))
        .say(Signal::Checkpoint);
    assert!(!format!("{:?}", writer.sent).contains(canary));
    assert!(matches!(&writer.sent[..], [Member::Event(_)]));
}

/// Measurements that say a secret wherever they can.
fn secret_metrics(secret: &str) -> wire::Metrics {
    let secret = || secret.to_owned();
    let metric = |value| wire::MetricValue { value: Some(value), unit: secret(), ..Default::default() };
    wire::Metrics {
        scope: secret(),
        scope_id: secret(),
        metrics: [
            (secret(), metric(wire::metric_value::Value::StringValue(secret()))),
            ("b".into(), metric(wire::metric_value::Value::BytesValue(secret().into_bytes()))),
        ]
        .into(),
        tags: [(secret(), secret())].into(),
        ..Default::default()
    }
}

#[test]
fn a_secret_in_any_text_of_any_kind_never_leaves() {
    let secret = || format!("a sk-{} b", "Ab1".repeat(10));
    let map = || [(secret(), secret())].into();
    let deep = wire::AttributeMap { values: [(secret(), text(secret()))].into() };
    let deep = AttributeValue { value: Some(Attribute::MapValue(deep)) };
    let list = wire::AttributeArray { values: vec![text(secret()), deep] };
    let bytes = AttributeValue { value: Some(Attribute::BytesValue(secret().into_bytes())) };
    let list = AttributeValue { value: Some(Attribute::ArrayValue(list)) };
    let event = Event {
        node_id: secret(),
        llm_request_id: secret(),
        attributes: [(secret(), text(secret())), ("b".into(), list), ("c".into(), bytes)].into(),
        ..Default::default()
    };
    let value = || json!({ secret(): [secret(), { "x": secret() }] });
    let error = wire::Error {
        error_code: secret(),
        message: secret(),
        stack_trace: secret(),
        context: map(),
        exception_type: secret(),
        suggestions: vec![secret()],
        ..Default::default()
    };
    let call = wire::ToolExecution {
        call_id: secret(),
        tool_name: secret(),
        error: secret(),
        error_details: Some(error.clone()),
        ..Default::default()
    };
    let metrics = secret_metrics(&secret());
    let token =
        wire::TokenChunk { request_id: secret(), text: secret(), model: secret(), ..Default::default() };
    let mut writer = Writer::new(Rules { checkpoint_every: 1, ..rules() });
    writer
        .say(Signal::Started {
            event: Box::new(event.clone()),
            schema: Some(value()),
            state: Some(Ok(value())),
        })
        .say(Signal::Event(event))
        .state(&json!([value()]))
        .say(Signal::State(Err(secret())))
        .say(Signal::Token(token))
        .say(Signal::Tool { call: Box::new(call), arguments: Some(value()), result: Some(value()) })
        .say(Signal::Metrics(metrics))
        .say(Signal::Error(Box::new(error)));
    for member in &writer.sent {
        let plain = DashStreamMessage { message: Some(member.clone()) }.encode_to_vec();
        let text = String::from_utf8_lossy(&plain);
        assert!(!text.contains("Ab1Ab1"), "{member:?}");
        assert!(text.contains("[OPENAI_KEY]"), "its place is marked: {member:?}");
    }
    assert_eq!(writer.sent.len(), 9);
}

#[test]
fn numbers_at_the_edge_have_one_hash_on_both_sides() {
    let mut writer = Writer::new(rules());
    writer.say(started(&json!({ "n": 0.0 })));
    for state in [
        json!({ "n": -0.0 }),
        json!({ "n": 9_007_199_254_740_993_u64 }),
        json!({ "n": u64::MAX, "m": i64::MIN }),
        json!({ "n": 1e21, "m": 1e-6, "k": 1.0 }),
        json!({ "\u{1f980}": 1, "\u{e000}": 2, "\u{ffee}": 3 }),
        serde_json::to_value([("nan", f64::NAN), ("infinite", f64::INFINITY)]).unwrap(),
    ] {
        writer.state(&state);
    }
    let mut reader = Reader::default();
    writer.sent.iter().for_each(|member| reader.read(member));
    assert_eq!(reader.0, Some(json!([["nan", null], ["infinite", null]])));
}

proptest! {
    #[test]
    fn whatever_is_lost_a_reader_of_the_rest_has_every_published_state(
        steps in prop::collection::vec((states(), 0_u8..6), 1..30)
    ) {
        let mut writer = Writer::new(Rules { checkpoint_every: 4, ..rules() });
        let mut reader = Reader::default();
        for (state, fate) in steps {
            let from = writer.sent.len();
            match fate {
                0 => writer.thread.skip(Hole { burned: 1, state: true }),
                1 => {
                    // Sent, and lost on the way.
                    writer.state(&state);
                    writer.sent.truncate(from);
                    writer.thread.on_failure(Carries::State);
                }
                2 => {
                    writer.say(started(&state));
                }
                _ => {
                    writer.state(&state);
                }
            }
            for member in &writer.sent[from..] {
                reader.read(member);
            }
        }
        let sequences = writer.sequences();
        prop_assert!(sequences.windows(2).all(|pair| pair[0] < pair[1]), "{sequences:?}");
    }
}
