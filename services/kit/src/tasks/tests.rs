use super::*;

const SECOND: Duration = Duration::from_secs(1);

async fn wait_for(token: CancellationToken) {
    token.cancelled().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_every_task() {
    let tasks = Tasks::new();
    let stop = tasks.stop_token();
    let slow = tasks.spawn("slow", async move {
        stop.cancelled().await;
        tokio::time::sleep(SECOND).await;
        7
    });
    assert_eq!(tasks.alive(), ["slow"]);
    assert_eq!(tasks.drain(2 * SECOND).await, Ok(()));
    assert_eq!(slow.await.unwrap(), 7);
    assert!(tasks.alive().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_runs_out_of_time_names_the_stuck_task() {
    let tasks = Tasks::new();
    tasks.spawn("obedient", wait_for(tasks.stop_token()));
    tasks.spawn("stuck", std::future::pending::<()>());
    let error = tasks.drain(SECOND).await.unwrap_err();
    assert_eq!(error.names, ["stuck"]);
    assert_eq!(error.to_string(), "tasks did not end within 1s: stuck");
}

#[tokio::test]
async fn a_task_that_panics_leaves_the_process_running() {
    let tasks = Tasks::new();
    let panicked = tasks.spawn("careless", async { panic!("expected by the test") });
    assert!(panicked.await.unwrap_err().is_panic());
    assert!(!tasks.stop_token().is_cancelled());
    assert!(tasks.alive().is_empty());
}

#[tokio::test]
async fn a_vital_task_stops_the_process_however_it_ends() {
    let ended = Tasks::new();
    ended.spawn_vital("ended", async { Err::<(), _>("why") });
    ended.stop_token().cancelled().await;

    let panicked = Tasks::new();
    panicked.spawn_vital("panicked", async { panic!("expected by the test") });
    panicked.stop_token().cancelled().await;

    let aborted = Tasks::new();
    aborted.spawn_vital("aborted", std::future::pending::<()>()).abort();
    aborted.stop_token().cancelled().await;
}

#[tokio::test]
async fn an_aborted_task_is_no_longer_alive() {
    let tasks = Tasks::new();
    let handle = tasks.spawn("aborted", std::future::pending::<()>());
    handle.abort();
    assert!(handle.await.unwrap_err().is_cancelled());
    assert_eq!(tasks.drain(SECOND).await, Ok(()));
}
