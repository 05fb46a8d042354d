//! What an agent does in a run, step by step, from a seed: the same seed gives the same steps.
use dashstream_producer::{END, Graph};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use std::{ops::Range, time::Duration};

/// The model that all agents ask.
pub(super) const MODEL: &str = "aurora-2-mini";
/// Dollars for a token of a prompt, and for one of an answer.
const PRICES: (f64, f64) = (0.000_000_25, 0.000_001);

/// Something that an agent does.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Start(Box<Graph>, Value),
    NodeStart(&'static str),
    NodeEnd(&'static str, Duration),
    NodeFail(&'static str, String, Duration),
    Edge(&'static str, &'static str),
    Branch(&'static str, &'static str, String),
    ParallelStart(&'static [&'static str]),
    ParallelEnd(&'static [&'static str], Duration),
    Model { node: &'static str, request: String, what: Model },
    Tool { id: String, tool: &'static str, retries: u32, what: Tool },
    State(Value),
    Measure(&'static str, &'static str, f64, &'static str),
    Error { node: &'static str, code: &'static str, message: String },
    Interrupt(&'static str, String),
    Resume(&'static str, String),
    Progress(&'static str, String, f64),
    Think(&'static str, String, u32),
    Substep(&'static str, String, &'static str),
    Warn(&'static str, String),
    Finish(Duration),
    Fail(String, Duration),
}

/// What happens between an agent and its model.
#[derive(Clone, Debug)]
pub(super) enum Model {
    Ask { prompt: String },
    Token { text: String, index: u32, is_last: bool },
    Answer { usage: (u32, u32), cost: f64, took: Duration },
    Fail { error: &'static str, took: Duration },
    Again { attempt: u32, because: &'static str },
}

/// What happens between an agent and a tool.
#[derive(Clone, Debug)]
pub(super) enum Tool {
    Call { arguments: Value },
    End { result: Value, took: Duration },
    Fail { error: &'static str, took: Duration },
    Again { because: &'static str },
}

/// An act, and how long after the one before it.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) after: Duration,
    pub(super) act: Act,
}

/// A run being written.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) rng: StdRng,
    pub(super) state: Value,
    steps: Vec<Step>,
    waited: Duration,
    elapsed: Duration,
    calls: u32,
}

impl Script {
    pub(super) fn new(seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        let (waited, elapsed) = (Duration::ZERO, Duration::ZERO);
        Self { rng, state: Value::Null, steps: Vec::new(), waited, elapsed, calls: 0 }
    }

    /// The steps of the run, which has ended.
    pub(super) fn steps(self) -> Vec<Step> {
        self.steps
    }

    pub(super) fn act(&mut self, act: Act) {
        self.steps.push(Step { after: std::mem::take(&mut self.waited), act });
    }

    /// Time passes, milliseconds.
    pub(super) fn wait(&mut self, ms: Range<u64>) {
        let waited = Duration::from_millis(self.rng.random_range(ms));
        self.waited += waited;
        self.elapsed += waited;
    }

    /// True `of` in a hundred times.
    pub(super) fn chance(&mut self, of: u32) -> bool {
        self.rng.random_ratio(of, 100)
    }

    pub(super) fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.random_range(0..of.len())]
    }

    pub(super) fn start(&mut self, graph: Graph, state: Value) {
        self.state = state.clone();
        self.act(Act::Start(Box::new(graph), state));
    }

    /// A node: what it does, the state after it, its end.
    pub(super) fn node(&mut self, node: &'static str, work: impl FnOnce(&mut Self)) {
        self.try_node(node, "", |script| {
            work(script);
            true
        });
    }

    /// A node that may fail, and the run with it, by this error. Whether the run goes on.
    pub(super) fn try_node(
        &mut self,
        node: &'static str,
        error: &str,
        work: impl FnOnce(&mut Self) -> bool,
    ) -> bool {
        let begun = self.elapsed;
        self.act(Act::NodeStart(node));
        self.wait(5..40);
        let worked = work(self);
        self.publish();
        let took = self.elapsed - begun;
        if worked {
            self.act(Act::Measure(node, "latency", took.as_secs_f64(), "seconds"));
            self.act(Act::NodeEnd(node, took));
        } else {
            self.act(Act::NodeFail(node, error.to_owned(), took));
            self.fail(&format!("{node}: {error}"));
        }
        worked
    }

    /// Nodes at the same time: what each does by turns, and where they join the state of all.
    pub(super) fn parallel(&mut self, nodes: &'static [&'static str], work: impl Fn(&mut Self, usize)) {
        let begun = self.elapsed;
        self.act(Act::ParallelStart(nodes));
        nodes.iter().for_each(|node| self.act(Act::NodeStart(node)));
        // Each branch is written by itself, and then they are shuffled together, each in its own order.
        let from = self.steps.len();
        let mut branches: Vec<_> = (0..nodes.len())
            .map(|at| {
                work(self, at);
                let took = self.elapsed - begun;
                self.act(Act::NodeEnd(nodes[at], took / nodes.len() as u32));
                self.steps.split_off(from).into_iter()
            })
            .collect();
        while !branches.is_empty() {
            let at = self.rng.random_range(0..branches.len());
            match branches[at].next() {
                Some(step) => self.steps.push(step),
                None => drop(branches.swap_remove(at)),
            }
        }
        self.publish();
        let took = self.elapsed - begun;
        self.act(Act::ParallelEnd(nodes, took));
    }

    pub(super) fn publish(&mut self) {
        let state = self.state.clone();
        self.act(Act::State(state));
    }

    /// A model is asked and answers, word by word; now and then only when it is asked again.
    pub(super) fn ask(&mut self, node: &'static str, prompt: &str, answer: &str) {
        self.calls += 1;
        let request = format!("req-{:03}", self.calls);
        let model = |what| Act::Model { node, request: request.clone(), what };
        let begun = self.elapsed;
        self.act(model(Model::Ask { prompt: prompt.to_owned() }));
        self.wait(120..450);
        if self.chance(4) {
            let took = self.elapsed - begun;
            let error =
                self.one(&["429: rate limit reached, try again in 1 s", "503: the model is overloaded"]);
            self.act(model(Model::Fail { error, took }));
            self.wait(900..1_400);
            self.act(model(Model::Again { attempt: 2, because: "the model was busy" }));
            self.wait(120..450);
        }
        let words: Vec<_> = answer.split_inclusive(' ').collect();
        for (index, text) in (0..).zip(&words) {
            let is_last = index as usize + 1 == words.len();
            self.act(model(Model::Token { text: (*text).to_owned(), index, is_last }));
            self.wait(15..60);
        }
        let usage = ((prompt.len() / 4) as u32 + 60, words.len() as u32);
        let cost = f64::from(usage.0) * PRICES.0 + f64::from(usage.1) * PRICES.1;
        let took = self.elapsed - begun;
        self.act(model(Model::Answer { usage, cost, took }));
    }

    /// A tool is called. Whether it answered, after two more attempts at most.
    pub(super) fn call(
        &mut self,
        node: &'static str,
        tool: &'static str,
        arguments: Value,
        result: Value,
    ) -> bool {
        self.calls += 1;
        let id = format!("call-{:03}", self.calls);
        let step = |retries, what| Act::Tool { id: id.clone(), tool, retries, what };
        self.act(step(0, Tool::Call { arguments }));
        for retries in 0..3 {
            let begun = self.elapsed;
            // Now and then a slow one.
            let time = if self.chance(5) { 2_000..6_000 } else { 40..700 };
            self.wait(time);
            let took = self.elapsed - begun;
            // What fails once often fails again.
            let failure = if retries == 0 { 8 } else { 40 };
            if !self.chance(failure) {
                self.act(step(retries, Tool::End { result, took }));
                return true;
            }
            let error =
                self.one(&["connection reset by peer", "504: no answer within 5 s", "502: bad gateway"]);
            self.act(step(retries, Tool::Fail { error, took }));
            if retries < 2 {
                self.wait(200..800);
                self.act(step(retries + 1, Tool::Again { because: error }));
            }
        }
        let message = format!("{tool} did not answer after three attempts");
        self.act(Act::Error { node, code: "TOOL_UNAVAILABLE", message });
        false
    }

    pub(super) fn finish(&mut self, last: &'static str) {
        self.act(Act::Edge(last, END));
        let took = self.elapsed;
        self.act(Act::Finish(took));
    }

    pub(super) fn fail(&mut self, error: &str) {
        let took = self.elapsed;
        self.act(Act::Fail(error.to_owned(), took));
    }
}
