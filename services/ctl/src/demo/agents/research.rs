//! Plan, then search and read until there is enough, then write.
use crate::demo::script::{Act, Script};
use dashstream_producer::{Graph, NodeType};
use rand::RngExt;
use serde_json::json;

const QUESTIONS: [&str; 5] = [
    "How much energy do heat pumps save in houses built before 1980?",
    "Which European cities have measured the effect of 30 km/h zones on noise?",
    "What became of the promises of solid-state batteries by 2025?",
    "Wie verändert sich die Größe der Gletscher in den Alpen seit 1990?",
    "How do LLM agents fail when tools return partial results?",
];
const SITES: [&str; 6] =
    ["iea.org", "nature.com", "arxiv.org", "eea.europa.eu", "de.wikipedia.org", "日本経済新聞.jp"];
const FINDINGS: [&str; 5] = [
    "Field studies report savings of 38 to 52 percent, depending on insulation.",
    "The effect was strongest in streets with much traffic at night.",
    "Two of the cited figures go back to the same press release.",
    "Messreihen zeigen einen Rückgang um rund ein Drittel, mit großer Streuung.",
    "The sample is small (n = 41), and the authors say so. \u{1f9ea}",
];

fn graph() -> Graph {
    Graph::new("research-agent", "plan")
        .node("plan", NodeType::Llm, "Break the question into searches")
        .node("search", NodeType::Tool, "Search the web")
        .node("read", NodeType::Tool, "Fetch pages and take notes")
        .node("judge", NodeType::Router, "Decide whether the notes are enough")
        .node("write", NodeType::Llm, "Write the report")
        .edge("plan", "search")
        .edge("search", "read")
        .edge("read", "judge")
        .branch("judge", &["search", "write"])
        .edge("write", dashstream_producer::END)
}

pub(super) fn run(script: &mut Script) {
    let question = script.one(&QUESTIONS);
    script.start(
        graph(),
        json!({ "question": question, "plan": [], "notes": [], "sources": {}, "report": null }),
    );
    script.node("plan", |script| {
        script.act(Act::Think("plan", "Look for measurements first, opinions later.".into(), 1));
        let prompt = format!("You are a careful researcher. List the searches that answer: {question}");
        script.ask(
            "plan",
            &prompt,
            "1. measurements and field studies 2. reviews of them 3. what is disputed",
        );
        script.state["plan"] = json!(["measurements", "reviews", "disputes"]);
    });
    script.act(Act::Edge("plan", "search"));
    let rounds = script.rng.random_range(2..5);
    for round in 0..rounds {
        if !search_and_read(script, question, round) {
            return;
        }
        script.node("judge", |script| {
            let part = f64::from(round + 1) / f64::from(rounds);
            script.act(Act::Progress("judge", format!("round {} of at most {rounds}", round + 1), part));
        });
        let (next, why) = if round + 1 < rounds {
            ("search", "a claim has one source only")
        } else {
            ("write", "enough notes")
        };
        script.act(Act::Branch("judge", next, why.into()));
    }
    script.node("write", |script| {
        let notes = script.state["notes"].to_string();
        let report: Vec<_> = (0..6).map(|_| script.one(&FINDINGS)).collect();
        script.ask(
            "write",
            &format!("Write a report on {question} from these notes: {notes}"),
            &report.join(" "),
        );
        script.state["report"] = json!(report.join("\n\n"));
    });
    script.finish("write");
}

fn search_and_read(script: &mut Script, question: &str, round: u32) -> bool {
    let site = script.one(&SITES);
    let found = script.try_node("search", "the web can't be searched", |script| {
        let urls: Vec<_> = (0..3).map(|at| format!("https://{site}/{round}/{at}")).collect();
        let arguments = json!({ "query": format!("{question} site:{site}"), "max_results": 3 });
        let found = script.call("search", "web_search", arguments, json!({ "results": urls }));
        script.state["sources"][site] = json!({ "round": round, "urls": urls });
        found
    });
    if !found {
        return false;
    }
    script.act(Act::Edge("search", "read"));
    script.node("read", |script| {
        for page in 0..script.rng.random_range(1..4) {
            script.act(Act::Substep("read", format!("page {page}"), "fetching"));
            // A page is large; most of it is never looked at again.
            let text = script.one(&FINDINGS).repeat(script.rng.random_range(5..60));
            let url = format!("https://{site}/{round}/{page}");
            if !script.call("read", "fetch_page", json!({ "url": url }), json!({ "status": 200, "text": text })) {
                script.act(Act::Warn("read", format!("{url} is left out")));
                continue;
            }
            let note = json!({ "url": url, "note": script.one(&FINDINGS), "trust": script.rng.random_range(0.3..1.0) });
            if let Some(notes) = script.state["notes"].as_array_mut() {
                notes.push(note);
            }
        }
    });
    script.act(Act::Edge("read", "judge"));
    true
}
