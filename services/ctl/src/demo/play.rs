//! Runs on a stage: whose step is next, and when.
use super::{
    agents::Agent,
    script::{Act, MODEL, Model, Step, Tool},
};
use dashstream_producer::{Failure, FinishReason, Llm, Measure, Producer, Run, Severity, Token, ToolCall};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{cmp::Reverse, collections::BinaryHeap, time::Duration, vec};

/// Runs of agents, one after another on each of so many places. The same seed gives the same runs.
pub(super) struct Stage {
    rng: StdRng,
    prefix: String,
    begun: u64,
    most: u64,
    every: Duration,
    /// When the next step of a run is due, since the beginning, and where that run is.
    due: BinaryHeap<Reverse<(Duration, usize)>>,
    places: Vec<Place>,
}

struct Place {
    run: Option<Run>,
    steps: vec::IntoIter<Step>,
    next: Option<Act>,
    begun: Option<Duration>,
}

impl Stage {
    /// `most` runs altogether, 0 for no end; at least `every` from the begin of a run to the begin of the next one at
    /// its place.
    pub(super) fn new(seed: u64, places: u32, most: u64, every: Duration, prefix: String) -> Self {
        let places: Vec<_> = (0..places)
            .map(|_| Place { run: None, steps: Vec::new().into_iter(), next: None, begun: None })
            .collect();
        // Not all at the same moment.
        let due = (0..places.len()).map(|at| Reverse((Duration::from_millis(700 * at as u64), at))).collect();
        Self { rng: StdRng::seed_from_u64(seed), prefix, begun: 0, most, every, due, places }
    }

    /// When the next step is due, since the beginning; `None` once all runs are over.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// Plays the next step.
    pub(super) fn step(&mut self, producer: &Producer) {
        let Some(Reverse((now, at))) = self.due.pop() else { return };
        let place = &mut self.places[at];
        if let (Some(act), Some(run)) = (place.next.take(), &place.run) {
            play(run, act);
        }
        if let Some(step) = place.steps.next() {
            place.next = Some(step.act);
            return self.due.push(Reverse((now + step.after, at)));
        }
        place.run = None;
        // The first time it comes here when the run is over, the second time when the next one may begin.
        if let Some(begun) = place.begun.take() {
            return self.due.push(Reverse((now.max(begun + self.every), at)));
        }
        if self.most == 0 || self.begun < self.most {
            self.begin(at, now, producer);
        }
    }

    fn begin(&mut self, at: usize, now: Duration, producer: &Producer) {
        self.begun += 1;
        let agent = Agent::ALL[self.rng.random_range(0..Agent::ALL.len())];
        let steps = agent.run(self.rng.random());
        let run = producer.run(&format!("{}{}-{:05}", self.prefix, agent.name(), self.begun));
        self.places[at] = Place { run: Some(run), steps: steps.into_iter(), next: None, begun: Some(now) };
        self.due.push(Reverse((now, at)));
    }
}

/// Tells of an act, as an application would.
fn play(run: &Run, act: Act) {
    match act {
        Act::Model { node, request, what } => {
            play_model(run, node, &Llm { request_id: &request, model: MODEL }, what);
        }
        Act::Tool { id, tool, retries, what } => {
            play_tool(run, &ToolCall { id: &id, name: tool, retries }, what)
        }
        Act::Start(graph, state) => run.graph_started(&graph, &state),
        Act::NodeStart(node) => run.node_started(node),
        Act::NodeEnd(node, took) => run.node_ended(node, took),
        Act::NodeFail(node, error, took) => run.node_failed(node, &error, took),
        Act::Edge(from, to) => run.edge(from, to),
        Act::Branch(from, to, because) => run.branch(from, to, &because),
        Act::ParallelStart(nodes) => run.parallel_started(nodes),
        Act::ParallelEnd(nodes, took) => run.parallel_ended(nodes, took),
        Act::State(state) => run.state(&state),
        Act::Measure(node, name, value, unit) => {
            run.metrics("node", node, [(name, Measure::Gauge(value, unit))])
        }
        Act::Error { node, code, message } => {
            let suggestions = &["look whether the service is up"];
            run.error(&Failure { code, message: &message, severity: Severity::Error, node, suggestions });
        }
        Act::Interrupt(node, question) => run.human_interrupt(node, &question),
        Act::Resume(node, answer) => run.human_resumed(node, &answer),
        Act::Progress(node, message, part) => run.progress(node, &message, part),
        Act::Think(node, thought, step) => run.thinking(node, &thought, step),
        Act::Substep(node, name, status) => run.substep(node, &name, status),
        Act::Warn(node, message) => run.warning(node, &message),
        Act::Finish(took) => run.finished(took),
        Act::Fail(error, took) => run.failed(&error, took),
    }
}

fn play_model(run: &Run, node: &str, llm: &Llm<'_>, what: Model) {
    match what {
        Model::Ask { prompt } => run.llm_started(node, llm, &prompt),
        // What was used is told once, with the answer.
        Model::Token { text, index, is_last } => {
            let finish = is_last.then_some(FinishReason::Stop);
            run.token(Token { llm: *llm, text: &text, index, finish, usage: None });
        }
        Model::Answer { usage, cost, took } => run.llm_ended(node, llm, usage, cost, took),
        Model::Fail { error, took } => run.llm_failed(node, llm, error, took),
        Model::Again { attempt, because } => run.llm_retried(node, llm, attempt, because),
    }
}

fn play_tool(run: &Run, call: &ToolCall<'_>, what: Tool) {
    match what {
        Tool::Call { arguments } => {
            run.tool_requested(call, &arguments);
            run.tool_started(call);
        }
        Tool::End { result, took } => run.tool_completed(call, &result, took),
        Tool::Fail { error, took } => run.tool_failed(call, error, took),
        Tool::Again { because } => run.tool_retried(call, because),
    }
}
