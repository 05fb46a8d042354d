//! A change to code, looked at by several reviewers at the same time.
use crate::demo::script::{Act, Script};
use dashstream_producer::{END, Graph, NodeType};
use rand::RngExt;
use serde_json::{Value, json};

const REVIEWERS: [&str; 4] = ["security", "correctness", "performance", "style"];
const REMARKS: [&str; 8] = [
    "The token is compared with ==, which takes longer the more of it is right.",
    "The path comes from the request and is joined without a check.",
    "The lock is held across the await.",
    "An empty list makes the average NaN.",
    "This clones the whole map for each request.",
    "The query runs once for each row.",
    "`tmp2` says nothing; what is it?",
    "Größe is spelt three ways in this file.",
];
const FILES: [&str; 5] =
    ["src/auth.rs", "src/session/store.rs", "web/cart.ts", "migrations/0042.sql", "README.md"];

fn graph() -> Graph {
    Graph::new("code-review-swarm", "fetch")
        .node("fetch", NodeType::Tool, "Fetch the change")
        .node("security", NodeType::Llm, "Look for holes")
        .node("correctness", NodeType::Llm, "Look for mistakes")
        .node("performance", NodeType::Llm, "Look for waste")
        .node("style", NodeType::Llm, "Look for what is hard to read")
        .node("merge", NodeType::Aggregator, "Join the remarks, drop doubles")
        .node("post", NodeType::Tool, "Post the review")
        .parallel("fetch", &REVIEWERS)
        .edge("security", "merge")
        .edge("correctness", "merge")
        .edge("performance", "merge")
        .edge("style", "merge")
        .edge("merge", "post")
        .edge("post", END)
}

pub(super) fn run(script: &mut Script) {
    let number = script.rng.random_range(100..9_999);
    script.start(graph(), json!({ "pull_request": number, "diff": null, "remarks": {}, "verdict": null }));
    let fetched = script.try_node("fetch", "the change can't be fetched", |script| {
        let lines = script.rng.random_range(20..400);
        let diff: String =
            (0..lines).map(|line| format!("+    let value_{line} = compute({line})?;\n")).collect();
        let result = json!({ "files": FILES, "diff": diff });
        let fetched = script.call("fetch", "get_pull_request", json!({ "number": number }), result.clone());
        script.state["diff"] = result["diff"].clone();
        fetched
    });
    if !fetched {
        return;
    }
    script.parallel(&REVIEWERS, |script, at| {
        let (reviewer, remark, file) =
            (REVIEWERS[at], REMARKS[2 * at + script.rng.random_range(0..2)], script.one(&FILES));
        script.act(Act::Think(reviewer, format!("{file} first, it changed most"), 1));
        script.ask(
            reviewer,
            &format!("Review for {reviewer}. Only what matters."),
            &format!("{file}: {remark}"),
        );
        script.state["remarks"][reviewer] =
            json!([{ "file": file, "line": script.rng.random_range(1..400), "text": remark }]);
    });
    script.act(Act::Edge("style", "merge"));
    script.node("merge", |script| {
        let open = script.state["remarks"]
            .as_object()
            .map_or(0, |remarks| remarks.values().filter_map(Value::as_array).map(Vec::len).sum());
        script.act(Act::Substep("merge", "drop doubles".into(), "done"));
        script.state["verdict"] = json!({ "open": open, "approve": open < 3 });
    });
    script.act(Act::Edge("merge", "post"));
    let posted = script.try_node("post", "the review can't be posted", |script| {
        let arguments = json!({ "number": number, "body": script.state["verdict"] });
        script.call("post", "create_review", arguments, json!({ "id": 1 }))
    });
    if posted {
        script.finish("post");
    }
}
