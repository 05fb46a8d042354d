//! Many clients at once, while everything behind them breaks, and while the gateways leave.
use dashstream_ctl::runs::Runs;
use dashstream_proto::log::v1::RecordKind;
use dashstream_tests::{
    Feed, Kind, Log, Service, Shape, Stack, Stop, Viewer, Want, eventually, eventually::pause, feed,
};
use futures_util::future::join_all;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};
use tokio::sync::watch;

const SEED: u64 = 7;
const THREADS: usize = 40;
/// What is produced while the storm lasts: a burst each 100 ms.
const BURSTS: usize = 150;
const BURST: usize = 20;

fn gateways(stack: &Stack) -> Vec<String> {
    stack.gateway.iter().map(Service::address).collect()
}

/// How a viewer reads while the storm lasts. Afterwards all read as fast as they can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Full,
    /// A hundredth of the time.
    Percent,
    FrameASecond,
    /// It stops after some frames, and the gateway is to be rid of it.
    Stalled,
}

/// What a crowd is told: whether the storm lasts, and the log once it is complete.
struct Weather {
    calm: watch::Sender<bool>,
    log: watch::Sender<Option<Log>>,
}

fn want(rng: &mut StdRng, threads: &[String]) -> Want {
    match rng.random_range(0..5) {
        0 => Want::All,
        1 => Want::Kinds(vec![RecordKind::Checkpoint, RecordKind::StateDiff]),
        2 => Want::Graph("rag".into()),
        3 => Want::Threads(vec![threads[rng.random_range(0..threads.len())].clone()]),
        _ => Want::Threads(threads.iter().filter(|_| rng.random_bool(0.3)).cloned().collect()),
    }
}

/// Two hundred viewers, each with its pace and what it decides by.
fn crowd(threads: &[String]) -> Vec<(Viewer, Pace, StdRng)> {
    let mut rng = StdRng::seed_from_u64(SEED);
    let viewer = |at| {
        let pace = match at % 10 {
            0 => Pace::Percent,
            1 => Pace::FrameASecond,
            2 => Pace::Stalled,
            _ => Pace::Full,
        };
        let in_flight = if rng.random_bool(0.5) { 0 } else { rng.random_range(1..64 << 10) };
        (Viewer::new(want(&mut rng, threads), in_flight), pace, StdRng::seed_from_u64(at))
    };
    (0..200).map(viewer).collect()
}

/// One viewer through the storm, cut every now and then, and on to the end of the log.
async fn watch_storm(
    viewer: &mut Viewer,
    pace: Pace,
    rng: &mut StdRng,
    gateways: &[String],
    weather: &Weather,
) {
    let mut calm = weather.calm.subscribe();
    let mut log = weather.log.subscribe();
    while !*calm.borrow() {
        let cut_after = rng.random_range(5..40);
        let mut events = 0;
        let mut patience = calm.clone();
        let next = async |viewer: &Viewer| {
            events += 1;
            let unwell = match pace {
                Pace::Full => Duration::ZERO,
                Pace::Percent => Duration::from_millis(100),
                Pace::FrameASecond => Duration::from_secs(1),
                Pace::Stalled if events > 10 => Duration::from_secs(600),
                Pace::Stalled => Duration::ZERO,
            };
            if !unwell.is_zero() {
                drop(tokio::time::timeout(unwell, patience.wait_for(|calm| *calm)).await);
            }
            let at_end = log.borrow().as_ref().is_some_and(|log| viewer.is_at_end(log));
            events < cut_after && !at_end
        };
        let gateway = &gateways[rng.random_range(0..gateways.len())];
        drop(viewer.follow(gateway, next).await);
        if log.borrow().as_ref().is_some_and(|log| viewer.is_at_end(log)) {
            return;
        }
        drop(tokio::time::timeout(Duration::from_millis(200), calm.wait_for(|calm| *calm)).await);
    }
    let log = log.wait_for(Option::is_some).await.expect("the test tells it").clone().expect("it is some");
    viewer.until_end(gateways, &log).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_any_filter_and_speed_receives_exactly_its_own_through_kills_and_moves() {
    let settings = vec![
        (Kind::Ingest, "KAFKA_SESSION_TIMEOUT", "2s".to_owned()),
        (Kind::Gateway, "GATEWAY_RING_BYTES", "64KiB".to_owned()),
        (Kind::Gateway, "GATEWAY_SEND_TIMEOUT", "3s".to_owned()),
    ];
    let shape = Shape { ingest: 2, replay: 2, gateway: 3, settings, ..Shape::default() };
    let stack = Stack::start(shape).await;
    let gateways = gateways(&stack);
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, SEED, THREADS);
    let mut threads: Vec<_> =
        Runs::new(SEED, THREADS, "t-", 0).take(2_000).map(|produced| produced.thread_id).collect();
    threads.sort();
    threads.dedup();

    let weather = Weather { calm: watch::Sender::new(false), log: watch::Sender::new(None) };
    let mut crowd = crowd(&threads);
    let healthy_left = AtomicUsize::new(crowd.iter().filter(|(_, pace, _)| *pace == Pace::Full).count());
    let over = AtomicBool::new(false);
    let watching = join_all(crowd.iter_mut().map(|(viewer, pace, rng)| async {
        watch_storm(viewer, *pace, rng, &gateways, &weather).await;
        if *pace == Pace::Full && healthy_left.fetch_sub(1, Ordering::Relaxed) == 1 {
            // All who are well are through while the others are still as slow as they were.
            weather.calm.send_replace(true);
        }
    }));
    let producing = async {
        for _ in 0..BURSTS {
            feed.send(BURST).await;
            pause(Duration::from_millis(100)).await;
        }
        over.store(true, Ordering::Relaxed);
        weather.log.send_replace(Some(feed.log().await));
    };
    let killing = async {
        let round = [&stack.ingest[0], &stack.replay[0], &stack.ingest[1], &stack.replay[1]];
        for victim in round.into_iter().cycle() {
            if over.load(Ordering::Relaxed) {
                return;
            }
            victim.restart(Stop::Kill).await;
            pause(Duration::from_secs(1)).await;
        }
    };
    let everything = async { tokio::join!(watching, producing, killing) };
    let (..) = tokio::time::timeout(Duration::from_secs(150), everything).await.unwrap_or_else(|_| {
        panic!("{} healthy viewers are not through", healthy_left.load(Ordering::Relaxed))
    });
    let log = weather.log.borrow().clone().expect("it was told");
    let sent = feed::records(&log);
    assert_eq!(sent, BURSTS * BURST);
    for (viewer, ..) in &crowd {
        viewer.assert_received(&log);
    }
    assert!(crowd.iter().any(|(viewer, ..)| viewer.records() == sent), "somebody wanted all");
    let sessions: usize = crowd.iter().map(|(viewer, ..)| viewer.sessions).sum();
    assert!(
        sessions > 2 * crowd.len(),
        "they were cut, and came back: {sessions} sessions for {sent} records"
    );
}

/// Clients of the crowd that a gateway sends away.
const CLIENTS: usize = 2_000;
const WINDOW: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_spreads_two_thousand_clients_and_costs_none_a_record() {
    let settings = vec![
        (Kind::Gateway, "GATEWAY_DRAIN_WINDOW", format!("{}s", WINDOW.as_secs())),
        (Kind::Gateway, "GATEWAY_SESSIONS_PER_ADDRESS_MAX", (2 * CLIENTS).to_string()),
    ];
    let stack = Stack::start(Shape { partitions: 2, gateway: 2, settings, ..Shape::default() }).await;
    let gateways = gateways(&stack);
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, SEED, 5);
    feed.send(20).await;

    let (complete, connected) = (watch::Sender::new(None::<Log>), AtomicUsize::new(0));
    let over = AtomicBool::new(false);
    let (restarted, reconnects) = (watch::Sender::new(None::<Instant>), std::sync::Mutex::new(Vec::new()));
    let client = async |at: usize| {
        let mut viewer = Viewer::new(Want::All, 0);
        let complete = complete.subscribe();
        let is_done = |viewer: &Viewer| complete.borrow().as_ref().is_some_and(|log| viewer.is_at_end(log));
        while !is_done(&viewer) {
            let mut first = true;
            let next = async |viewer: &Viewer| {
                if std::mem::take(&mut first) {
                    match *restarted.borrow() {
                        None => drop(connected.fetch_add(1, Ordering::Relaxed)),
                        Some(begun) => reconnects.lock().expect("nobody panics").push(begun.elapsed()),
                    }
                }
                !is_done(viewer)
            };
            let gateway = &gateways[(at + viewer.sessions) % gateways.len()];
            if viewer.follow(gateway, next).await.is_err() {
                pause(Duration::from_millis(20)).await;
            }
        }
        viewer
    };
    let restarting = async {
        eventually("all are connected", Duration::from_secs(60), async || {
            let connected = connected.load(Ordering::Relaxed);
            if connected >= CLIENTS { Ok(()) } else { Err(format!("{connected} are")) }
        })
        .await;
        restarted.send_replace(Some(Instant::now()));
        stack.gateway[0].restart(Stop::Terminate).await;
        over.store(true, Ordering::Relaxed);
    };
    let producing = async {
        while !over.load(Ordering::Relaxed) {
            feed.send(2).await;
            pause(Duration::from_millis(500)).await;
        }
        complete.send_replace(Some(feed.log().await));
    };
    let crowd = join_all((0..CLIENTS).map(client));
    let everything = async { tokio::join!(crowd, restarting, producing) };
    let (crowd, ..) =
        tokio::time::timeout(Duration::from_secs(120), everything).await.expect("all are through");
    let log = complete.borrow().clone().expect("it was told");
    crowd.iter().for_each(|viewer| viewer.assert_received(&log));

    assert_spread(&reconnects.into_inner().expect("nobody panics"));
}

/// Those of the gateway that left came back within its window, in no second many more than in any other.
fn assert_spread(reconnects: &[Duration]) {
    assert!(reconnects.len() >= CLIENTS / 2, "{} came back", reconnects.len());
    let seconds = |second: u64| reconnects.iter().filter(|after| after.as_secs() == second).count();
    let spread: Vec<_> = (0..WINDOW.as_secs() + 2).map(seconds).collect();
    let fair = CLIENTS / 2 / WINDOW.as_secs() as usize;
    assert!(spread.iter().all(|count| *count <= 2 * fair), "as planned {fair} a second: {spread:?}");
}
