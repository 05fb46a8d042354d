//! A long task: a plan, then part after part, each by a graph within this one.
use crate::demo::script::{Act, Script};
use dashstream_producer::{END, Graph, NodeType};
use rand::RngExt;
use serde_json::json;

const TASKS: [&str; 3] = [
    "Move the shop from the old payment service to the new one",
    "Write the yearly report on energy for all 14 sites",
    "Prepare the conference in Zürich: speakers, rooms, travel",
];
const PARTS: [&str; 6] = ["gather", "clarify", "draft", "calculate", "compare", "summarise"];

fn graph() -> Graph {
    // The nodes of the graph within have its name before theirs.
    Graph::new("planner", "plan")
        .node("plan", NodeType::Llm, "Cut the task into parts")
        .node("execute", NodeType::Router, "Pick the next part")
        .node("execute/think", NodeType::Llm, "What the part needs")
        .node("execute/act", NodeType::Tool, "Do it")
        .node("execute/verify", NodeType::Validator, "Did it work?")
        .node("deliver", NodeType::Llm, "Put the parts together")
        .edge("plan", "execute")
        .branch("execute", &["execute/think", "deliver"])
        .edge("execute/think", "execute/act")
        .edge("execute/act", "execute/verify")
        .branch("execute/verify", &["execute/act", "execute"])
        .edge("deliver", END)
}

pub(super) fn run(script: &mut Script) {
    let task = script.one(&TASKS);
    let count = script.rng.random_range(5..12);
    let parts: Vec<_> =
        (0..count).map(|at| json!({ "id": at, "title": script.one(&PARTS), "status": "open" })).collect();
    script.start(graph(), json!({ "task": task, "parts": [], "artifacts": {}, "log": [] }));
    script.node("plan", |script| {
        script.act(Act::Think("plan", "Parts that need nothing of each other come first.".into(), 1));
        script.ask(
            "plan",
            &format!("Cut into parts: {task}"),
            &format!("{count} parts, of which two can begin now."),
        );
        script.state["parts"] = json!(parts);
    });
    script.act(Act::Edge("plan", "execute"));
    for at in 0..count {
        if !part(script, at, count) {
            return script.fail("a part failed twice; the plan can't be carried out");
        }
    }
    script.act(Act::Branch("execute", "deliver", "no part is open".into()));
    script.node("deliver", |script| {
        script.ask(
            "deliver",
            &format!("Put together what was made for: {task}"),
            "Everything is in place; the open points are listed at the end.",
        );
        script.state["delivered"] = json!(true);
    });
    script.finish("deliver");
}

/// One part, by the graph within.
fn part(script: &mut Script, at: usize, count: usize) -> bool {
    script.node("execute", |script| {
        script.act(Act::Progress("execute", format!("part {} of {count}", at + 1), at as f64 / count as f64));
        script.state["parts"][at]["status"] = json!("running");
    });
    script.act(Act::Branch("execute", "execute/think", format!("part {} is next", at + 1)));
    script.node("execute/think", |script| {
        script.ask(
            "execute/think",
            &format!("What does part {} need?", at + 1),
            "The figures of last year, and an owner.",
        );
    });
    script.act(Act::Edge("execute/think", "execute/act"));
    for attempt in 0..2 {
        let mut worked = false;
        script.node("execute/act", |script| {
            let rows: Vec<_> = (0..script.rng.random_range(10..80_u32))
                .map(|row| json!([row, row * 7 % 13, "ok"]))
                .collect();
            worked = script.call(
                "execute/act",
                "run_python",
                json!({ "code": "report.build(part)", "timeout_s": 30 }),
                json!({ "rows": rows.len() }),
            );
            script.state["artifacts"][format!("part-{at}")] = json!({ "attempt": attempt, "rows": rows });
        });
        script.act(Act::Edge("execute/act", "execute/verify"));
        script.node("execute/verify", |script| {
            script.state["parts"][at]["status"] = json!(if worked { "done" } else { "failed" });
            if let Some(log) = script.state["log"].as_array_mut() {
                log.push(json!(format!(
                    "part {at}, attempt {attempt}: {}",
                    if worked { "done" } else { "failed" }
                )));
            }
        });
        if worked {
            script.act(Act::Branch("execute/verify", "execute", "it worked".into()));
            return true;
        }
        script.act(Act::Branch("execute/verify", "execute/act", "it did not work; once more".into()));
    }
    false
}
