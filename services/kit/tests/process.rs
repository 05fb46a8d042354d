//! A process from start to end: one test, as it installs what a process can have only once.

use std::time::Duration;

use clap::Parser as _;
use dashstream_kit::{Kit, config};

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    kit: config::Config,
}

#[tokio::test]
async fn a_process_leaves_on_sigterm_with_its_tasks_ended() {
    // Nobody listens on port 9: a collector that is away must not hold the process up.
    let args =
        ["test", "--ops-listen=127.0.0.1:0", "--log-format=json", "--otlp-endpoint=http://127.0.0.1:9"];
    let Cli { kit: config } = Cli::parse_from(args);
    let kit = Kit::start("test", &config).await.unwrap();
    assert_ne!(kit.ops_address().unwrap().port(), 0);

    let stop = kit.tasks.stop_token();
    let task = kit.tasks.spawn("worker", async move { stop.cancelled().await });
    tracing::info_span!("work").in_scope(|| tracing::info!("working"));

    let id = std::process::id().to_string();
    let told = std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap();
    assert!(told.success());
    let deadline = Duration::from_secs(10);
    tokio::time::timeout(deadline, task).await.expect("the signal stops tasks").unwrap();
    tokio::time::timeout(deadline, kit.drain(deadline)).await.expect("the drain ends").unwrap();
    assert!(Kit::start("test", &config).await.is_err(), "a process starts once");
}
