//! The shape of a graph, as it is sent along with the start of a run.
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::time::SystemTime;

/// Where a run ends.
pub const END: &str = "__end__";

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeType {
    Transform,
    Llm,
    Tool,
    Router,
    Aggregator,
    Validator,
    HumanInLoop,
    Checkpoint,
}

impl NodeType {
    fn label(self) -> &'static str {
        match self {
            Self::Transform => "transform",
            Self::Llm => "llm",
            Self::Tool => "tool",
            Self::Router => "router",
            Self::Aggregator => "aggregator",
            Self::Validator => "validator",
            Self::HumanInLoop => "human_in_loop",
            Self::Checkpoint => "checkpoint",
        }
    }
}

/// A graph: nodes, and edges that lead from one to the next.
#[derive(Clone, Debug)]
pub struct Graph {
    name: String,
    entry_point: String,
    nodes: Vec<(String, NodeType, String)>,
    edges: Vec<Edge>,
}

#[derive(Clone, Debug)]
struct Edge {
    from: String,
    to: Vec<String>,
    kind: &'static str,
}

impl Graph {
    pub fn new(name: impl Into<String>, entry_point: impl Into<String>) -> Self {
        Self { name: name.into(), entry_point: entry_point.into(), nodes: Vec::new(), edges: Vec::new() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds a node, and what it is for.
    #[must_use]
    pub fn node(mut self, name: &str, kind: NodeType, description: &str) -> Self {
        self.nodes.push((name.into(), kind, description.into()));
        self
    }

    /// From one node to the next, always.
    #[must_use]
    pub fn edge(self, from: &str, to: &str) -> Self {
        self.leads(from, &[to], "direct")
    }

    /// From one node to one of several.
    #[must_use]
    pub fn branch(self, from: &str, to: &[&str]) -> Self {
        self.leads(from, to, "conditional")
    }

    /// From one node to several at a time.
    #[must_use]
    pub fn parallel(self, from: &str, to: &[&str]) -> Self {
        self.leads(from, to, "parallel")
    }

    fn leads(mut self, from: &str, to: &[&str], kind: &'static str) -> Self {
        self.edges.push(Edge { from: from.into(), to: to.iter().map(|to| (*to).to_owned()).collect(), kind });
        self
    }

    pub(crate) fn entry_point(&self) -> &str {
        &self.entry_point
    }

    /// How many nodes and edges it has.
    pub(crate) fn counts(&self) -> (i64, i64) {
        (self.nodes.len() as i64, self.edges.iter().map(|edge| edge.to.len() as i64).sum())
    }

    /// The same for graphs of the same entry point, nodes and edges, whatever the order in which they were said.
    pub(crate) fn schema_id(&self) -> String {
        let mut nodes: Vec<_> = self.nodes.iter().map(|(name, ..)| name.as_str()).collect();
        nodes.sort_unstable();
        let mut edges: Vec<_> = self
            .each_edge()
            .map(|(from, to, edge)| format!("{from}->{to}:{}", edge.kind == "conditional"))
            .collect();
        edges.sort_unstable();
        let text = format!("entry:{};nodes:{};edges:{}", self.entry_point, nodes.join(","), edges.join(","));
        Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    fn each_edge(&self) -> impl Iterator<Item = (&str, &str, &Edge)> {
        self.edges.iter().flat_map(|edge| edge.to.iter().map(move |to| (&*edge.from, &**to, edge)))
    }

    /// The schema as readers expect it.
    pub(crate) fn schema(&self, exported: SystemTime) -> Value {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|(name, kind, description)| {
                json!({
                    "name": name, "description": description, "node_type": kind.label(), "input_fields": [],
                    "output_fields": [], "position": null, "attributes": {},
                })
            })
            .collect();
        let edges: Vec<_> = self
            .each_edge()
            .map(|(from, to, edge)| {
                let targets = (edge.kind == "conditional").then_some(&edge.to);
                json!({
                    "from": from, "to": to, "edge_type": edge.kind, "label": null, "conditional_targets": targets,
                })
            })
            .collect();
        json!({
            "name": self.name, "version": "1.0.0", "description": null, "nodes": nodes, "edges": edges,
            "entry_point": self.entry_point, "state_type": null,
            "exported_at": humantime::format_rfc3339_seconds(exported).to_string(), "metadata": {},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_has_an_edge_for_each_target_and_an_id_of_its_shape() {
        let graph = |first: &str, second: &str| {
            Graph::new("g", "a")
                .node(first, NodeType::Llm, "")
                .node(second, NodeType::Tool, "")
                .branch("a", &["b", END])
                .edge("b", "a")
        };
        assert_eq!(graph("a", "b").schema_id(), graph("b", "a").schema_id());
        assert_ne!(graph("a", "b").schema_id(), graph("a", "b").edge("a", "b").schema_id());
        // The first 16 digits of `printf 'entry:a;nodes:a,b;edges:a->__end__:true,a->b:true,b->a:false' | sha256sum`.
        assert_eq!(graph("a", "b").schema_id(), "1c732ae333405a32");
        let schema = graph("a", "b").schema(SystemTime::UNIX_EPOCH);
        assert_eq!(schema["edges"].as_array().map(Vec::len), Some(3));
        assert_eq!(schema["edges"][0]["conditional_targets"], json!(["b", END]));
        assert_eq!(schema["exported_at"], "1970-01-01T00:00:00Z");
    }
}
