//! The agents: what each is made of, and what it does in a run.
use super::script::{Script, Step};

mod planner;
mod rag;
mod research;
mod review;
mod triage;

/// An agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Agent {
    /// Plans, searches in a loop, writes a report.
    Research,
    /// Sorts a customer's message out, asks a person before money is paid back.
    Triage,
    /// Several reviewers of a change at the same time.
    Review,
    /// Answers from documents that it looks up.
    Rag,
    /// A long task, in parts that are graphs of their own.
    Planner,
}

impl Agent {
    pub(super) const ALL: [Self; 5] = [Self::Research, Self::Triage, Self::Review, Self::Rag, Self::Planner];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Research => "research",
            Self::Triage => "support-triage",
            Self::Review => "code-review",
            Self::Rag => "rag",
            Self::Planner => "planner",
        }
    }

    /// All that it does in a run; the same for the same seed.
    pub(super) fn run(self, seed: u64) -> Vec<Step> {
        let mut script = Script::new(seed);
        match self {
            Self::Research => research::run(&mut script),
            Self::Triage => triage::run(&mut script),
            Self::Review => review::run(&mut script),
            Self::Rag => rag::run(&mut script),
            Self::Planner => planner::run(&mut script),
        }
        script.steps()
    }
}

#[cfg(test)]
mod tests;
