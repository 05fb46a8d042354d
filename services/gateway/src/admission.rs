//! How many sessions there may be at a time: of one address, of one tenant, of this replica. All of it is per
//! replica: behind a balancer a fleet admits that many times as many.
use dashstream_core::filter::Tenants;
use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Most sessions at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub replica: u32,
    pub address: u32,
    pub tenant: u32,
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error("this replica has {0} sessions, its most: try again")]
    Replica(u32),
    // The predecessor's words, which its clients know.
    #[error("Too many connections from this IP")]
    Address(u32),
    #[error("a tenant of the token has {0} sessions at this replica, the most: try again")]
    Tenant(u32),
}

impl Full {
    /// For metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Replica(_) => "over_limit",
            Self::Address(_) => "over_limit_of_address",
            Self::Tenant(_) => "over_limit_of_tenant",
        }
    }
}

/// Counts sessions. A cheap handle.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: Limits,
    /// Held for moments, never over an await.
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    replica: u32,
    addresses: HashMap<IpAddr, u32>,
    tenants: HashMap<String, u32>,
}

impl Inner {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one session. It is free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    inner: Arc<Inner>,
    address: IpAddr,
    tenants: BTreeSet<String>,
}

impl Admission {
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Inner { limits, counts: Mutex::default() }))
    }

    /// A place for a session from this address.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn admit(&self, address: IpAddr) -> Result<Place, Full> {
        let (limits, address) = (self.0.limits, network(address));
        let mut counts = self.0.counts();
        if counts.replica >= limits.replica {
            return Err(Full::Replica(limits.replica));
        }
        if !take(&mut counts.addresses, address, limits.address) {
            return Err(Full::Address(limits.address));
        }
        counts.replica += 1;
        Ok(Place { inner: Arc::clone(&self.0), address, tenants: BTreeSet::new() })
    }
}

impl Place {
    /// Counts the session to its tenants, once they are known. One that may see all counts to none.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn of(&mut self, tenants: &Tenants) -> Result<(), Full> {
        let Tenants::Only(names) = tenants else { return Ok(()) };
        let most = self.inner.limits.tenant;
        let mut counts = self.inner.counts();
        for name in names {
            if self.tenants.contains(name) {
                continue;
            }
            if !take(&mut counts.tenants, name.clone(), most) {
                return Err(Full::Tenant(most));
            }
            self.tenants.insert(name.clone());
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.inner.counts();
        counts.replica -= 1;
        release(&mut counts.addresses, &self.address);
        for name in &self.tenants {
            release(&mut counts.tenants, name);
        }
    }
}

fn take<K: Hash + Eq>(counts: &mut HashMap<K, u32>, key: K, most: u32) -> bool {
    let count = counts.entry(key).or_insert(0);
    let is_free = *count < most;
    *count += u32::from(is_free);
    is_free
}

/// Forgets whoever has nothing left, so that the counts are bounded by the sessions.
fn release<K: Hash + Eq>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// What counts as one address: of IPv6 the 64 bits that a site is given, since it has all of the others.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(names: &[&str]) -> Tenants {
        Tenants::Only(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn each_limit_holds_and_a_place_is_free_again_once_it_is_left() {
        let admission = Admission::new(Limits { replica: 3, address: 2, tenant: 1 });
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut one = admission.admit(address("10.0.0.1")).unwrap();
        let two = admission.admit(address("::ffff:10.0.0.1")).unwrap();
        assert_eq!(admission.admit(address("10.0.0.1")).unwrap_err(), Full::Address(2), "mapped is the same");
        let mut three = admission.admit(address("10.0.0.2")).unwrap();
        assert_eq!(admission.admit(address("10.0.0.3")).unwrap_err(), Full::Replica(3));

        one.of(&only(&["a", "b"])).unwrap();
        one.of(&only(&["a", "b"])).unwrap();
        assert_eq!(three.of(&only(&["b"])).unwrap_err(), Full::Tenant(1));
        three.of(&Tenants::All).unwrap();
        drop(one);
        three.of(&only(&["b"])).unwrap();
        drop(two);
        admission.admit(address("10.0.0.1")).unwrap();
        drop(three);
        let counts = admission.0.counts();
        assert_eq!((counts.replica, counts.addresses.len(), counts.tenants.len()), (0, 0, 0));
    }

    #[test]
    fn a_site_of_the_sixth_version_is_one_address() {
        let network = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("::ffff:192.0.2.1"), "192.0.2.1");
    }
}
