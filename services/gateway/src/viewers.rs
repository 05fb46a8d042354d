//! Who watches: the sessions of this replica, and how far each was delivered.
use dashstream_core::filter::{Filter, Tenants};
use dashstream_proto::{gateway::v1::DeliveryMode, log::v1::Cursor};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// All sessions of this replica. A cheap handle.
#[derive(Clone, Debug, Default)]
pub struct Viewers(Arc<Mutex<BTreeMap<String, Arc<Viewer>>>>);

/// One session.
#[derive(Debug)]
pub struct Viewer {
    pub session_id: String,
    pub subject: String,
    pub address: IpAddr,
    /// Milliseconds since 1970.
    pub connected_ms: i64,
    pub tenants: Tenants,
    watching: Mutex<Watching>,
}

/// What a session receives, as it last said.
#[derive(Clone, Debug, Default)]
pub struct Watching {
    /// How far it was delivered, for each partition.
    pub delivered: Vec<Cursor>,
    pub mode: DeliveryMode,
    /// Which records; `None` until it has said, for all that it may read.
    pub filter: Option<Arc<Filter>>,
}

/// A session that is listed for as long as this lives.
#[derive(Debug)]
pub struct Seat {
    viewers: Viewers,
    viewer: Arc<Viewer>,
}

impl Viewers {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Viewer>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a session.
    pub fn enter(&self, viewer: Viewer) -> Seat {
        let viewer = Arc::new(viewer);
        self.all().insert(viewer.session_id.clone(), Arc::clone(&viewer));
        Seat { viewers: self.clone(), viewer }
    }

    /// Those who may receive records of the thread, if one is named, and of whom the caller may know: all whose
    /// tenants are among its own.
    pub fn list(&self, caller: &Tenants, thread: Option<(&str, &str)>) -> Vec<(Arc<Viewer>, Watching)> {
        let known = |viewer: &Arc<Viewer>| is_within(&viewer.tenants, caller);
        let viewers: Vec<_> = self.all().values().filter(|viewer| known(viewer)).cloned().collect();
        let watching = viewers.into_iter().map(|viewer| {
            let watching = viewer.watching().clone();
            (viewer, watching)
        });
        let receives = |(viewer, watching): &(Arc<Viewer>, Watching)| {
            thread.is_none_or(|(tenant, thread)| {
                let filter = watching.filter.as_ref();
                viewer.tenants.allow(tenant) && filter.is_none_or(|filter| filter.may_pass(tenant, thread))
            })
        };
        watching.filter(receives).collect()
    }
}

fn is_within(of: &Tenants, caller: &Tenants) -> bool {
    match (of, caller) {
        (_, Tenants::All) => true,
        (Tenants::All, Tenants::Only(_)) => false,
        (Tenants::Only(of), Tenants::Only(caller)) => of.is_subset(caller),
    }
}

impl Viewer {
    pub fn new(
        session_id: String,
        subject: String,
        address: IpAddr,
        tenants: Tenants,
        connected_ms: i64,
    ) -> Self {
        Self { session_id, subject, address, connected_ms, tenants, watching: Mutex::default() }
    }

    fn watching(&self) -> MutexGuard<'_, Watching> {
        self.watching.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Says where the session is. Once a second will do.
    pub fn says(&self, watching: Watching) {
        *self.viewer.watching() = watching;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.viewers.all().remove(&self.viewer.session_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dashstream_proto::session::v1 as wire;

    fn only(names: &[&str]) -> Tenants {
        Tenants::Only(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn viewers_are_listed_to_those_who_may_know_of_them_for_as_long_as_they_watch() {
        let viewers = Viewers::default();
        let enter = |id: &str, tenants| {
            let address = IpAddr::from([127, 0, 0, 1]);
            viewers.enter(Viewer::new(id.to_owned(), "ann".to_owned(), address, tenants, 1))
        };
        let (_one, two, _all) =
            (enter("one", only(&["a"])), enter("two", only(&["a", "b"])), enter("all", Tenants::All));
        let listed = |caller: &Tenants, thread| {
            viewers
                .list(caller, thread)
                .iter()
                .map(|(viewer, _)| viewer.session_id.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(listed(&Tenants::All, None), ["all", "one", "two"]);
        assert_eq!(listed(&only(&["a"]), None), ["one"]);
        assert_eq!(listed(&only(&["a", "b"]), None), ["one", "two"]);
        assert_eq!(listed(&only(&["b"]), None), [""; 0]);
        assert_eq!(listed(&Tenants::All, Some(("b", "t-1"))), ["all", "two"]);

        let asked = wire::Filter { thread_ids: vec!["t-2".to_owned()], ..Default::default() };
        let filter = Filter::new(&only(&["a", "b"]), asked).unwrap();
        two.says(Watching { filter: Some(Arc::new(filter)), ..Watching::default() });
        assert_eq!(listed(&Tenants::All, Some(("b", "t-1"))), ["all"]);
        assert_eq!(listed(&Tenants::All, Some(("b", "t-2"))), ["all", "two"]);
        drop(two);
        assert_eq!(listed(&Tenants::All, None), ["all", "one"]);
    }
}
