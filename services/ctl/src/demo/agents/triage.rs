//! A customer's message: what it is about, who deals with it, and a person where money is paid back.
use crate::demo::script::{Act, Script};
use dashstream_producer::{END, Graph, NodeType};
use rand::RngExt;
use serde_json::json;

const MESSAGES: [(&str, &str); 5] = [
    ("refund", "I was charged twice for order 58231, please send the money back."),
    ("refund", "Die Lieferung kam zerbrochen an. Ich möchte mein Geld zurück. \u{1f621}"),
    ("technical", "The app closes whenever I open the map since the update of yesterday."),
    ("technical", "ログインできません。パスワードをリセットしても同じです。"),
    ("account", "How do I move my subscription to my wife's account?"),
];

fn graph() -> Graph {
    Graph::new("support-triage", "classify")
        .node("classify", NodeType::Llm, "What the message is about")
        .node("refund", NodeType::Tool, "Look the order up")
        .node("technical", NodeType::Llm, "Search known problems")
        .node("account", NodeType::Llm, "Answer from the manual")
        .node("approve", NodeType::HumanInLoop, "A person decides on money")
        .node("reply", NodeType::Llm, "Write to the customer")
        .branch("classify", &["refund", "technical", "account"])
        .edge("refund", "approve")
        .edge("approve", "reply")
        .edge("technical", "reply")
        .edge("account", "reply")
        .edge("reply", END)
}

pub(super) fn run(script: &mut Script) {
    let (topic, message) = script.one(&MESSAGES);
    let customer =
        json!({ "id": script.rng.random_range(10_000..99_999), "language": "auto", "tier": "standard" });
    let state =
        json!({ "message": message, "customer": customer, "topic": null, "approved": null, "reply": null });
    script.start(graph(), state);
    script.node("classify", |script| {
        script.ask("classify", &format!("One of refund, technical, account: {message}"), topic);
        script.state["topic"] = json!(topic);
        script.state["confidence"] = json!(script.rng.random_range(0.6..1.0));
    });
    script.act(Act::Branch("classify", topic, format!("the message is about: {topic}")));
    match topic {
        "refund" => {
            refund(script);
            script.act(Act::Edge("approve", "reply"));
        }
        "technical" => {
            script.node("technical", |script| {
                let hits = json!([{ "id": "KB-1207", "title": "Map closes on start", "score": 0.83 }]);
                let arguments = json!({ "query": message, "limit": 5 });
                if script.call("technical", "search_known_problems", arguments, hits.clone()) {
                    script.state["known"] = hits;
                }
            });
            script.act(Act::Edge("technical", "reply"));
        }
        _ => {
            script.node("account", |script| {
                script.ask("account", message, "Settings, then Family, then Move subscription.");
            });
            script.act(Act::Edge("account", "reply"));
        }
    }
    script.node("reply", |script| {
        let reply = match (topic, script.state["approved"].as_bool()) {
            ("refund", Some(true)) => "You will have the amount back within five days. We are sorry.",
            ("refund", _) => "We looked at your order again and can't pay it back; here is why.",
            ("technical", _) => "Version 8.4.1 solves this; until then, switch the map's animation off.",
            _ => "You find this under Settings, Family, Move subscription.",
        };
        script.ask("reply", &format!("Answer politely, in the customer's language: {message}"), reply);
        script.state["reply"] = json!(reply);
    });
    script.finish("reply");
}

fn refund(script: &mut Script) {
    let cents = script.rng.random_range(900..25_000);
    script.node("refund", |script| {
        let order = json!({ "order": 58_231, "cents": cents, "charged": 2, "currency": "EUR" });
        if script.call("refund", "look_up_order", json!({ "order": 58_231 }), order.clone()) {
            script.state["order"] = order;
        } else {
            script.act(Act::Warn("refund", "the order is not known; a person has to look".into()));
        }
    });
    script.act(Act::Edge("refund", "approve"));
    script.node("approve", |script| {
        script.act(Act::Interrupt("approve", format!("Pay back {}.{:02} EUR?", cents / 100, cents % 100)));
        // People take their time.
        script.wait(3_000..12_000);
        let approved = script.chance(75);
        let answer = if approved { "yes, it was charged twice" } else { "no, it was paid back in May" };
        script.act(Act::Resume("approve", answer.into()));
        script.state["approved"] = json!(approved);
    });
}
