//! A batch with what is sent of it, encoded once for all sessions that see the same.
use crate::{
    batch::{Malformed, Selected},
    filter::{Filter, graphs::Names},
    frame,
};
use bytes::Bytes;
use dashstream_proto::log::v1::Batch;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

/// Most filters of which one batch remembers what they leave.
const VIEWS_MAX: usize = 16;

/// What a frame says of when and as of what it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Kafka's high watermark, as last heard.
    pub high_watermark: Option<u64>,
    /// Milliseconds since 1970.
    pub made_ms: Option<i64>,
    pub from_replay: bool,
}

/// What a filter leaves of a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum View {
    Whole,
    Nothing,
    /// Some records, and the frame that carries them and spans the whole batch; they lie in its buffer.
    Part {
        batch: Batch,
        frame: Bytes,
    },
}

/// A batch and its frames. A cheap handle.
#[derive(Clone, Debug)]
pub struct Slot(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    batch: Batch,
    frame: Bytes,
    stamp: Stamp,
    /// Newest last. Their frames take at most as many bytes as the whole one.
    views: Mutex<VecDeque<(Arc<Filter>, View)>>,
}

impl Slot {
    /// Encodes the frame that carries it whole; the batch is a part of that from then on.
    pub fn new(batch: Batch, stamp: Stamp) -> Self {
        let frame = frame::whole(&batch, stamp);
        let batch = frame::batch_in(&frame).unwrap_or(batch);
        Self(Arc::new(Inner { batch, frame, stamp, views: Mutex::default() }))
    }

    pub fn batch(&self) -> &Batch {
        &self.0.batch
    }

    /// The frame that carries it whole.
    pub fn frame(&self) -> &Bytes {
        &self.0.frame
    }

    pub fn stamp(&self) -> Stamp {
        self.0.stamp
    }

    /// What a filter leaves of it; remembered for the filters asked last.
    ///
    /// # Errors
    /// [`Malformed`] when its records do not parse.
    pub fn view(&self, filter: &Arc<Filter>, names: &Names) -> Result<View, Malformed> {
        if filter.keeps_all() {
            return Ok(View::Whole);
        }
        let mut views = self.0.views.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |(of, _): &&(Arc<Filter>, View)| Arc::ptr_eq(of, filter) || of == filter;
        if let Some((_, view)) = views.iter().find(same) {
            return Ok(view.clone());
        }
        let view = match filter.apply(&self.0.batch, names, None, None)? {
            Selected::All => View::Whole,
            Selected::Nothing => View::Nothing,
            Selected::Some(part) => {
                let frame = frame::part(&part, &self.0.batch, self.0.stamp);
                View::Part { batch: frame::batch_in(&frame).unwrap_or(part), frame }
            }
        };
        // A thread that names its graph later changes what is left.
        if !filter.by_graph() || names.complete() {
            views.push_back((Arc::clone(filter), view.clone()));
            while views.len() > VIEWS_MAX || bytes(&views) > self.0.frame.len() {
                views.pop_front();
            }
        }
        Ok(view)
    }
}

fn bytes(views: &VecDeque<(Arc<Filter>, View)>) -> usize {
    let bytes = |(_, view): &(Arc<Filter>, View)| match view {
        View::Whole | View::Nothing => 0,
        View::Part { frame, .. } => frame.len(),
    };
    views.iter().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{batch::tests::batch, filter::Tenants};
    use dashstream_proto::session::v1 as wire;
    use prost::Message;

    fn of_thread(thread: &str) -> Arc<Filter> {
        let asked = wire::Filter { thread_ids: vec![thread.into()], ..Default::default() };
        Arc::new(Filter::new(&Tenants::All, asked).unwrap())
    }

    fn frame_of(slot: &Slot, filter: &Arc<Filter>) -> Bytes {
        match slot.view(filter, &Names::default()).unwrap() {
            View::Part { frame, .. } => frame,
            other @ (View::Whole | View::Nothing) => panic!("{other:?}"),
        }
    }

    #[test]
    fn equal_filters_share_one_frame() {
        let slot = Slot::new(batch(1, Some(4), &[5, 6, 7, 8, 9]), Stamp::default());
        let first = frame_of(&slot, &of_thread("thread-0"));
        let second = frame_of(&slot, &of_thread("thread-0"));
        assert_eq!(first.as_ptr(), second.as_ptr());
        assert_ne!(frame_of(&slot, &of_thread("thread-1")).as_ptr(), first.as_ptr());
        assert_eq!(slot.view(&of_thread("none"), &Names::default()).unwrap(), View::Nothing);
    }

    #[test]
    fn every_frame_says_as_of_which_head_and_when_it_was_made() {
        let stamp = Stamp { high_watermark: Some(12), made_ms: Some(1_700_000_000_000), from_replay: true };
        let slot = Slot::new(batch(1, Some(4), &[5, 6, 7, 8, 9]), stamp);
        for frame in [slot.frame().clone(), frame_of(&slot, &of_thread("thread-0"))] {
            let Some(wire::server_frame::Frame::Records(frame)) =
                wire::ServerFrame::decode(frame).unwrap().frame
            else {
                panic!()
            };
            assert_eq!((frame.high_watermark, frame.made_ms), (Some(12), Some(1_700_000_000_000)));
            assert!(frame.from_replay);
        }
    }

    #[test]
    fn a_batch_lies_within_its_frame() {
        let slot = Slot::new(batch(1, None, &[0, 1]), Stamp::default());
        let (frame, records) = (slot.frame().as_ptr_range(), slot.batch().records.as_ptr_range());
        assert!(frame.start < records.start && records.end <= frame.end);
    }

    #[test]
    fn what_is_remembered_of_filters_is_bounded() {
        let offsets: Vec<_> = (0..64).collect();
        let slot = Slot::new(batch(1, None, &offsets), Stamp::default());
        for thread in 0..100 {
            slot.view(&of_thread(&format!("thread-{thread}")), &Names::default()).unwrap();
            let views = slot.0.views.lock().unwrap();
            assert!(views.len() <= VIEWS_MAX && bytes(&views) <= slot.frame().len());
        }
    }
}
