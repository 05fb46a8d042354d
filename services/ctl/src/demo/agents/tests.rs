use super::*;
use crate::demo::script::{Act, Model, Tool};
use std::collections::HashMap;

type Happened = fn(&Act) -> bool;

fn acts(agent: Agent, seed: u64) -> Vec<String> {
    agent.run(seed).iter().map(|step| format!("{step:?}")).collect()
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for agent in Agent::ALL {
        assert_eq!(acts(agent, 7), acts(agent, 7), "{}", agent.name());
        assert_ne!(acts(agent, 7), acts(agent, 8), "{}", agent.name());
    }
}

#[test]
fn every_run_begins_once_ends_once_and_leaves_no_node_open() {
    for (agent, seed) in Agent::ALL.into_iter().flat_map(|agent| (0..200).map(move |seed| (agent, seed))) {
        let steps = agent.run(seed);
        let mut open: HashMap<&str, u32> = HashMap::new();
        for step in &steps {
            if let Act::NodeStart(node) = &step.act {
                *open.entry(node).or_default() += 1;
            } else if let Act::NodeEnd(node, _) | Act::NodeFail(node, ..) = &step.act {
                *open.get_mut(node).expect("it was started") -= 1;
            }
        }
        assert!(open.values().all(|count| *count == 0), "{} {seed}: {open:?}", agent.name());
        let ends = steps.iter().filter(|step| matches!(step.act, Act::Finish(_) | Act::Fail(..))).count();
        assert_eq!(ends, 1);
        assert!(matches!(steps.first().map(|step| &step.act), Some(Act::Start(..))));
        assert!(matches!(steps.last().map(|step| &step.act), Some(Act::Finish(_) | Act::Fail(..))));
    }
}

#[test]
fn everything_that_happens_to_agents_happens_to_these() {
    let happens: [(&str, Happened); 12] = [
        ("parallel branches join", |act| matches!(act, Act::ParallelEnd(..))),
        ("a person is asked", |act| matches!(act, Act::Interrupt(..))),
        ("a person answers", |act| matches!(act, Act::Resume(..))),
        ("a tool fails", |act| matches!(act, Act::Tool { what: Tool::Fail { .. }, .. })),
        ("a tool is called again", |act| matches!(act, Act::Tool { what: Tool::Again { .. }, .. })),
        ("a model fails", |act| matches!(act, Act::Model { what: Model::Fail { .. }, .. })),
        ("a model is asked again", |act| matches!(act, Act::Model { what: Model::Again { .. }, .. })),
        ("a branch is taken", |act| matches!(act, Act::Branch(..))),
        ("a run fails", |act| matches!(act, Act::Fail(..))),
        ("a run finishes", |act| matches!(act, Act::Finish(_))),
        ("a graph runs within another", |act| matches!(act, Act::NodeStart(node) if node.contains('/'))),
        ("a state is large", |act| matches!(act, Act::State(state) if state.to_string().len() > 10_000)),
    ];
    let runs = Agent::ALL.into_iter().flat_map(|agent| (0..200).map(move |seed| agent.run(seed)));
    let steps: Vec<_> = runs.flatten().collect();
    for (what, happened) in happens {
        assert!(steps.iter().any(|step| happened(&step.act)), "{what}");
    }
}
