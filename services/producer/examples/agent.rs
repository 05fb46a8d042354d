//! A small agent: it asks a model, calls a tool, and tells about it.
//!
//! `cargo run --package dashstream-producer --example agent -- 127.0.0.1:9092`, while `dashstream tail` looks on.
use dashstream_kafka::Connection;
use dashstream_producer::{Config, END, FinishReason, Graph, Llm, NodeType, Producer, Token, ToolCall};
use prometheus::Registry;
use serde_json::json;
use std::{error::Error, time::Duration};

fn main() -> Result<(), Box<dyn Error>> {
    let brokers = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9092".into());
    // Metrics go where the application's own are.
    let registry = Registry::new();
    let client = Connection::plaintext(brokers).client_config("weather-agent", &[])?;
    let producer = Producer::start(Config::new("dashstream-events"), client, &registry)?;

    let run = producer.run("weather-in-oslo");
    let graph = Graph::new("weather", "look_up")
        .node("look_up", NodeType::Tool, "Ask the weather service")
        .node("answer", NodeType::Llm, "Say it in a sentence")
        .edge("look_up", "answer")
        .edge("answer", END);
    run.graph_started(&graph, &json!({ "question": "How is the weather in Oslo?", "answer": null }));

    run.node_started("look_up");
    let call = ToolCall { id: "call-1", name: "weather", retries: 0 };
    run.tool_requested(&call, &json!({ "city": "Oslo" }));
    run.tool_completed(&call, &json!({ "celsius": -3.5, "sky": "snow" }), Duration::from_millis(120));
    run.state(
        &json!({ "question": "How is the weather in Oslo?", "weather": { "celsius": -3.5 }, "answer": null }),
    );
    run.node_ended("look_up", Duration::from_millis(130));
    run.edge("look_up", "answer");

    run.node_started("answer");
    let llm = Llm { request_id: "request-1", model: "small-1" };
    run.llm_started("answer", &llm, "It is -3.5 degrees in Oslo, with snow. Say it in a sentence.");
    for (index, text) in ["It snows in Oslo", ", at ", "-3.5 °C."].into_iter().enumerate() {
        let last = index == 2;
        let (finish, usage) = (last.then_some(FinishReason::Stop), last.then_some((24, 11)));
        run.token(Token { llm, text, index: index as u32, finish, usage });
    }
    run.llm_ended("answer", &llm, (24, 11), 0.000_02, Duration::from_millis(480));
    run.state(&json!({
        "question": "How is the weather in Oslo?",
        "weather": { "celsius": -3.5 },
        "answer": "It snows in Oslo, at -3.5 °C.",
    }));
    run.node_ended("answer", Duration::from_millis(490));
    run.finished(Duration::from_millis(630));

    match producer.shutdown(Duration::from_secs(5)).undelivered() {
        0 => Ok(()),
        undelivered => Err(format!("{undelivered} messages did not reach Kafka").into()),
    }
}
