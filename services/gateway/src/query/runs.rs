//! Runs: replay's threads, within the caller's tenants.
use super::{Query, asked};
use crate::auth::{Access, Refused};
use dashstream_proto::{
    gateway::v1 as wire,
    replay::v1::{self as replay, read_thread_request::From},
};
use futures_util::{Stream, StreamExt, stream};
use std::{
    pin::Pin,
    time::{Duration, SystemTime},
};
use tonic::{Status, Streaming};

const PAGE_SIZE_DEFAULT: u32 = 50;
const PAGE_SIZE_MAX: u32 = 500;

/// How long a run's next records may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

type Answers = Pin<Box<dyn Stream<Item = Result<wire::ReadRunResponse, Status>> + Send>>;

impl Query {
    /// A page of runs. Replay's may come short where it looked at many that are others'; its token may then name one
    /// of theirs, so it is not handed out but followed here.
    pub(super) async fn list(
        &self,
        access: &Access,
        request: wire::ListRunsRequest,
    ) -> Result<wire::ListRunsResponse, Status> {
        let tenant_ids = asked(access, request.tenant_ids).map_err(|refused| self.refuse(refused))?;
        let (mut client, stream) = self.replay.asking();
        let mut ask = replay::ListThreadsRequest {
            stream,
            tenant_ids,
            statuses: request.statuses,
            graph_name: request.graph_name,
            active_since_ms: request.active_since_ms,
            page_size: 0,
            page_token: request.page_token,
        };
        let size =
            if request.page_size == 0 { PAGE_SIZE_DEFAULT } else { request.page_size.min(PAGE_SIZE_MAX) };
        let mut runs = Vec::new();
        loop {
            ask.page_size = size - u32::try_from(runs.len()).unwrap_or(size);
            let page = client.list_threads(ask.clone()).await?.into_inner();
            runs.extend(page.threads.into_iter().filter(|run| access.tenants.allow(&run.tenant_id)));
            if page.next_page_token.is_empty() || runs.len() >= size as usize {
                return Ok(wire::ListRunsResponse { runs, next_page_token: page.next_page_token });
            }
            ask.page_token = page.next_page_token;
        }
    }

    /// One run. Another tenant's is as unknown as none.
    pub(super) async fn run(&self, access: &Access, thread_id: String) -> Result<replay::Thread, Status> {
        let unknown = || Status::not_found(format!("no run {:?} is kept", short(&thread_id)));
        let tenant_ids = asked(access, Vec::new()).map_err(|refused| self.refuse(refused))?;
        let (mut client, stream) = self.replay.asking();
        let request = replay::DescribeThreadRequest {
            stream,
            thread_id: thread_id.clone(),
            tenant_id: String::new(),
            tenant_ids,
        };
        let run = client.describe_thread(request).await?.into_inner().thread.ok_or_else(unknown)?;
        if access.tenants.allow(&run.tenant_id) { Ok(run) } else { Err(unknown()) }
    }

    /// A run's records, as replay brings them.
    pub(super) async fn read(
        &self,
        access: Access,
        request: wire::ReadRunRequest,
    ) -> Result<Answers, Status> {
        let tenant_ids = asked(&access, Vec::new()).map_err(|refused| self.refuse(refused))?;
        let from = match (request.after_sequence, request.after) {
            (None, None) => None,
            (Some(sequence), None) => Some(From::AfterSequence(sequence)),
            (None, Some(cursor)) => Some(From::After(cursor)),
            (Some(_), Some(_)) => {
                let text = "after_sequence and after are both set: expected at most one";
                return Err(Status::invalid_argument(text));
            }
        };
        let (mut client, stream) = self.replay.asking();
        let ask = replay::ReadThreadRequest {
            stream,
            tenant_id: String::new(),
            thread_id: request.thread_id,
            records_max: request.records_max,
            tenant_ids,
            from,
        };
        let steps = client.read_thread(ask).await?.into_inner();
        let answers = stream::unfold(Some(steps), next_step);
        Ok(answers.map(move |step| within(&access, step?)).boxed())
    }
}

type Step = Result<replay::ReadThreadResponse, Status>;

async fn next_step(
    steps: Option<Streaming<replay::ReadThreadResponse>>,
) -> Option<(Step, Option<Streaming<replay::ReadThreadResponse>>)> {
    let mut steps = steps?;
    let step = tokio::time::timeout(STEP_TIMEOUT, steps.message()).await;
    let late = |_| Err(Status::deadline_exceeded(format!("replay did not go on within {STEP_TIMEOUT:?}")));
    match step.unwrap_or_else(late) {
        Ok(None) => None,
        Ok(Some(step)) => Some((Ok(step), Some(steps))),
        Err(status) => Some((Err(status), None)),
    }
}

/// Threads of two tenants may share an id: only the caller's records are passed on, and only while it may read.
fn within(access: &Access, step: replay::ReadThreadResponse) -> Result<wire::ReadRunResponse, Status> {
    if access.is_over(SystemTime::now()) {
        return Err(Refused::Expired.into());
    }
    let replay::ReadThreadResponse { partition, epoch, records, at_end, gap } = step;
    let records = records.into_iter().filter(|record| access.tenants.allow(&record.tenant_id)).collect();
    Ok(wire::ReadRunResponse { records, at_end, partition, epoch, gap })
}

fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dashstream_core::filter::Tenants;
    use dashstream_proto::log::v1::Record;

    #[test]
    fn of_a_thread_that_tenants_share_each_gets_its_own_records_while_it_may() {
        let record = |tenant: &str| Record { tenant_id: tenant.to_owned(), ..Default::default() };
        let step = replay::ReadThreadResponse {
            records: vec![record("a"), record("b"), record("")],
            ..Default::default()
        };
        let now = SystemTime::now();
        let access = |expires| Access {
            subject: String::new(),
            tenants: Tenants::Only(["a".to_owned()].into()),
            permissions: Default::default(),
            expires,
        };
        let soon = access(Some(now + Duration::from_secs(600)));
        assert_eq!(within(&soon, step.clone()).unwrap().records, [record("a")]);
        assert_eq!(within(&access(Some(now)), step).unwrap_err().code(), tonic::Code::Unauthenticated);
    }
}
