//! An answer from documents: rewrite, retrieve, rank, answer, check.
use crate::demo::script::{Act, Script};
use dashstream_producer::{END, Graph, NodeType};
use rand::RngExt;
use serde_json::json;

const QUESTIONS: [&str; 4] = [
    "What is the notice period in our lease for the office in Graz?",
    "Which suppliers were audited in 2024, and with what result?",
    "¿Cuántos días de vacaciones tengo el primer año?",
    "Who may sign contracts above 50,000 EUR?",
];

fn graph() -> Graph {
    Graph::new("rag-pipeline", "rewrite")
        .node("rewrite", NodeType::Llm, "Make a search of the question")
        .node("retrieve", NodeType::Tool, "Nearest passages")
        .node("rank", NodeType::Transform, "Order them by use")
        .node("answer", NodeType::Llm, "Answer from the passages alone")
        .node("check", NodeType::Validator, "Is each sentence backed?")
        .edge("rewrite", "retrieve")
        .edge("retrieve", "rank")
        .edge("rank", "answer")
        .edge("answer", "check")
        .branch("check", &["retrieve", END])
}

pub(super) fn run(script: &mut Script) {
    let question = script.one(&QUESTIONS);
    script.start(
        graph(),
        json!({ "question": question, "query": null, "passages": [], "answer": null, "backed": null }),
    );
    script.node("rewrite", |script| {
        script.ask(
            "rewrite",
            &format!("As keywords: {question}"),
            "notice period lease office termination clause",
        );
        script.state["query"] = json!("notice period lease office termination clause");
    });
    script.act(Act::Edge("rewrite", "retrieve"));
    let rounds = if script.chance(30) { 2 } else { 1 };
    for round in 1..=rounds {
        if !retrieve_and_answer(script, question) {
            return;
        }
        let backed = round == rounds;
        script.node("check", |script| script.state["backed"] = json!(backed));
        if !backed {
            script.act(Act::Branch("check", "retrieve", "a sentence is not backed by any passage".into()));
        }
    }
    script.act(Act::Branch("check", END, "every sentence is backed".into()));
    script.finish("check");
}

fn retrieve_and_answer(script: &mut Script, question: &str) -> bool {
    let count = script.rng.random_range(4..12);
    let found = script.try_node("retrieve", "the index does not answer", |script| {
        let passages: Vec<_> = (0..count)
            .map(|at| {
                let score: f64 = script.rng.random_range(0.4..0.95);
                json!({ "document": format!("contracts/{at:03}.pdf"), "score": score, "text": "The lease may be ended by either side with six months' notice to the end of a quarter. ".repeat(4) })
            })
            .collect();
        let arguments = json!({ "query": script.state["query"], "k": count });
        let found = script.call("retrieve", "vector_search", arguments, json!({ "hits": count }));
        script.state["passages"] = json!(passages);
        found
    });
    if !found {
        return false;
    }
    script.act(Act::Edge("retrieve", "rank"));
    script.node("rank", |script| {
        if let Some(passages) = script.state["passages"].as_array_mut() {
            passages.sort_by(|a, b| {
                b["score"].as_f64().unwrap_or_default().total_cmp(&a["score"].as_f64().unwrap_or_default())
            });
            passages.truncate(3);
        }
        script.act(Act::Measure("rank", "kept", 3.0 / f64::from(count), "ratio"));
    });
    script.act(Act::Edge("rank", "answer"));
    script.node("answer", |script| {
        let answer =
            "Six months, to the end of a quarter [contracts/002.pdf]; in writing, by registered mail.";
        script.ask("answer", &format!("From the passages only: {question}"), answer);
        script.state["answer"] = json!(answer);
    });
    script.act(Act::Edge("answer", "check"));
    true
}
