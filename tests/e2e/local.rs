//! What a new user sees first.
use dashstream_ctl::tail;
use dashstream_tests::{Kind, Service};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn local_mode_shows_runs_that_tail_follows_and_proves() {
    let local = Service::start(Kind::Local, &[]);
    local.ready().await;
    let config = tail::Config {
        url: vec![format!("ws://{}/ws", local.address())],
        token: None,
        from: tail::Start::Earliest,
        format: tail::Format::Counts,
        count: 100,
        until_caught_up: false,
        tenant: Vec::new(),
        thread: Vec::new(),
        graph: Vec::new(),
    };
    let followed = tokio::time::timeout(Duration::from_secs(60), tail::run(config, CancellationToken::new()));
    let totals = followed.await.expect("runs flow within a minute").expect("nothing breaks the chain");
    assert!(totals.records >= 100 && totals.gaps == 0, "{totals:?}");
    let log = local.log_text();
    assert!(log.contains("started"), "it shows runs:\n{log}");
    local.stop(dashstream_tests::Stop::Terminate).await;
}
