use super::*;
use crate::legacy::names::Form;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// A sorted set as Redis has it: by score, then by the bytes of the member.
struct SortedSet(Vec<(f64, Bytes)>);

impl SortedSet {
    fn new(index: &Index, numbers: impl IntoIterator<Item = u64>) -> Self {
        let head = match index.family {
            Family::Partition => "p:partition:3:offset:",
            Family::Thread(_) => "p:thread:a:seq:b:seq:",
        };
        let members = numbers.into_iter().map(|at| (at as f64, Bytes::from(format!("{head}{at}"))));
        let mut members: Vec<_> = members.collect();
        members.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
        Self(members)
    }

    fn answer(&self, window: &Window) -> Vec<Bytes> {
        let least = window.after.map_or(f64::NEG_INFINITY, |after| after as f64);
        let most = window.before.map_or(f64::INFINITY, |before| before as f64);
        let inside = self.0.iter().filter(|(score, _)| (least..=most).contains(score));
        inside.take(window.limit()).map(|(_, member)| member.clone()).collect()
    }
}

fn partition() -> Index {
    Index::of_partition("p", Partition::new(3).unwrap())
}

fn thread(form: Form) -> Index {
    Index { key: "p:thread:x:sequences".into(), family: Family::Thread(form) }
}

/// All that is found from window to window, and in how many of them.
fn walk(indexes: &[Index], sets: &[SortedSet], first: Window) -> (Vec<u64>, usize) {
    let (mut found, mut windows, mut window) = (Vec::new(), 0, Some(first));
    while let Some(here) = window {
        let slice = here.slice(indexes, sets.iter().map(|set| set.answer(&here)).collect()).unwrap();
        assert!(slice.members.len() <= here.count + indexes.len(), "{here:?}");
        found.extend(slice.members.iter().map(|member| member.at));
        windows += 1;
        assert!(windows < 10_000, "no end at {here:?}");
        window = slice.next;
    }
    (found, windows)
}

#[test]
fn commands_include_both_bounds() {
    let command = Window::new(Some((1 << 53) + 1), Some(i64::MAX as u64), 10).command(&partition());
    let text = String::from_utf8(command.get_packed_command()).unwrap();
    let words: Vec<_> = text.split("\r\n").skip(2).step_by(2).collect();
    assert_eq!(words[..3], ["ZRANGEBYSCORE", "p:partition:3:offsets", "9007199254740992"]);
    assert_eq!(words[3].parse(), Ok((i64::MAX as u64) as f64));
    assert_eq!(words[4..7], ["LIMIT", "0", "14"]);
}

#[test]
fn numbers_come_from_the_key() {
    let at = |index: &Index, key: &'static str| index.member(key.into()).map(|member| member.at);
    assert_eq!(at(&partition(), "x:partition:3:offset:9007199254740993"), Some((1 << 53) + 1));
    assert_eq!(at(&thread(Form::Raw), "x:thread:a:seq:1:seq:18446744073709551615"), Some(u64::MAX));
    for wrong in ["", "7", ":offset:", ":offset:-1", ":offset:+1", ":seq:1", ":offset:18446744073709551616"] {
        assert_eq!(at(&partition(), wrong), None, "{wrong}");
    }
}

#[test]
fn every_neighbour_of_a_power_is_found_once_and_in_order() {
    let powers =
        [1 << 53, 10_u64.pow(16), 10_u64.pow(17), 10_u64.pow(18), 1 << 62, (1 << 63) - 2_000, 10_u64.pow(19)];
    for power in powers {
        let numbers: Vec<_> = (power - 1_500..power + 1_500).collect();
        let set = [SortedSet::new(&thread(Form::Raw), numbers.iter().copied())];
        for count in [16, 256] {
            let (found, windows) = walk(&[thread(Form::Raw)], &set, Window::new(None, None, count));
            assert_eq!(found, numbers, "around {power}, {count} at a time");
            assert!(windows <= numbers.len() / count * 2 + 20, "around {power}: {windows} windows");
        }
    }
}

#[test]
fn a_page_may_end_anywhere_around_a_new_digit() {
    for power in [10_u64.pow(16), 10_u64.pow(17)] {
        let numbers: Vec<_> = (power - 20..power + 20).collect();
        let set = [SortedSet::new(&partition(), numbers.iter().copied())];
        for count in 1..30 {
            let (found, _) = walk(&[partition()], &set, Window::new(None, None, count));
            assert_eq!(found, numbers, "around {power}, {count} at a time");
        }
    }
}

#[test]
fn an_index_of_anything_else_is_an_error_and_not_a_loop() {
    let mut window = Window::new(None, None, 256);
    let error = loop {
        let answer = vec![Bytes::from_static(b"what"); window.limit()];
        match window.slice(&[partition()], vec![answer]) {
            Ok(slice) => window = slice.next.expect("there is more"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("no keys of rows"), "{error}");
}

proptest! {
    #[test]
    fn windows_find_exactly_the_range(
        numbers in prop::collection::vec(prop::collection::btree_set(number(), 0..300), 1..4),
        after in prop::option::of(number()), before in prop::option::of(number()), count in 1..40_usize,
    ) {
        let indexes: Vec<_> = [Form::B64, Form::Raw, Form::Hashed].map(thread).into_iter().take(numbers.len()).collect();
        let sets: Vec<_> =
            indexes.iter().zip(&numbers).map(|(index, set)| SortedSet::new(index, set.iter().copied())).collect();
        let (mut found, _) = walk(&indexes, &sets, Window::new(after, before, count));
        prop_assert!(found.is_sorted());
        let total = found.len();
        found.dedup();
        let inside = |at: &u64| Some(*at) > after && before.is_none_or(|before| *at < before);
        let expected: BTreeSet<_> = numbers.iter().flatten().copied().filter(inside).collect();
        prop_assert_eq!(total, numbers.iter().flatten().filter(|at| inside(at)).count());
        prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
    }
}

/// Small ones, and ones that crowd where doubles are coarse and where a number gets another digit.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(u64::MAX),
        0..500_u64,
        (1 << 53) - 40..(1_u64 << 53) + 80,
        10_u64.pow(16) - 40..10_u64.pow(16) + 40,
        10_u64.pow(18) - 200..10_u64.pow(18) + 200,
        (1 << 63) - 1_200..(1_u64 << 63),
        u64::MAX - 3_000..=u64::MAX,
    ]
}
