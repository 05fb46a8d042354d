//! Waiting for something that another process will bring about.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Asks again and again, at first quickly and then every 100 ms, until the answer is `Ok`.
///
/// # Panics
/// When `timeout` has passed, with `what` was awaited and the last error. A question that hangs
/// counts as unanswered.
///
/// This is the only place where a test may sleep: a fixed pause is either too short on a busy
/// machine or wasted on a quick one.
pub async fn eventually<T, E, A>(what: &str, timeout: Duration, mut ask: A) -> T
where
    E: std::fmt::Display,
    A: AsyncFnMut() -> Result<T, E>,
{
    let deadline = Instant::now() + timeout;
    let mut pause = FIRST_PAUSE;
    let mut last = String::from("it never answered");
    loop {
        match timeout_at(deadline, ask()).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => panic!("{what}: not within {timeout:?}, the last question hung; before it: {last}"),
        }
        assert!(Instant::now() + pause < deadline, "{what}: not within {timeout:?}: {last}");
        sleep(pause).await;
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

/// A pace: between two attempts of something that fails at once, or two bursts of a producer. Never to wait
/// for anything.
pub async fn pause(pace: Duration) {
    sleep(pace).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_success_is_returned() {
        let mut asked = 0;
        let answer = eventually("the third answer", Duration::from_secs(1), async || {
            asked += 1;
            if asked < 3 { Err("too early") } else { Ok(asked) }
        })
        .await;
        assert_eq!(answer, 3);
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "the moon: not within 1s: still day")]
    async fn a_timeout_names_what_was_awaited_and_the_last_error() {
        eventually("the moon", Duration::from_secs(1), async || Err::<(), _>("still day")).await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "the last question hung")]
    async fn a_question_that_hangs_does_not_outlast_the_timeout() {
        let hang = async || std::future::pending::<Result<(), String>>().await;
        eventually("an answer", Duration::from_secs(1), hang).await;
    }
}
