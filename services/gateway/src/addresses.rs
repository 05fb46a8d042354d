//! Where a request comes from: the peer, unless that is a proxy whose word is taken.
use axum::http::HeaderMap;
use ipnet::IpNet;
use std::{net::IpAddr, str::FromStr};

const FORWARDED_FOR: &str = "x-forwarded-for";

/// Networks of proxies whose `X-Forwarded-For` is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies(Vec<IpNet>);

impl FromStr for Proxies {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let network = |text: &str| {
            let alone = || text.parse::<IpAddr>().map(IpNet::from);
            text.parse::<IpNet>()
                .or_else(|_| alone())
                .map_err(|_| format!("expected networks such as `10.0.0.0/8,192.0.2.7`, found `{text}`"))
        };
        let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
        texts.map(network).collect::<Result<_, _>>().map(Self)
    }
}

impl Proxies {
    fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The address of the client. Each proxy adds the one that it was called from at the right end, so the list is
    /// read from there, for as long as those who wrote it are trusted; whatever stands further left may be made up.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer;
        let lines = headers.get_all(FORWARDED_FOR).iter().filter_map(|line| line.to_str().ok());
        let entries: Vec<_> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
        for entry in entries.iter().rev() {
            if !self.trusts(client) {
                break;
            }
            // From here on nobody trusted says anything.
            let Some(address) = address(entry) else { break };
            client = address;
        }
        client.to_canonical()
    }
}

/// Some proxies add the port.
fn address(entry: &str) -> Option<IpAddr> {
    let bare = entry.trim_matches(['[', ']']);
    bare.parse().ok().or_else(|| entry.parse::<std::net::SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_the_last_whom_a_trusted_proxy_names() {
        let proxies: Proxies = "10.0.0.0/8, 192.0.2.7,2001:db8::/32".parse().unwrap();
        for (why, peer, lines, client) in [
            ("nobody forwards", "203.0.113.1", vec![], "203.0.113.1"),
            ("a stranger's header is not read", "203.0.113.1", vec!["198.51.100.9"], "203.0.113.1"),
            ("a proxy's header is", "10.0.0.1", vec!["198.51.100.9"], "198.51.100.9"),
            (
                "what the client made up stands further left",
                "10.0.0.1",
                vec!["1.1.1.1, 198.51.100.9"],
                "198.51.100.9",
            ),
            (
                "proxies in between are passed",
                "10.0.0.1",
                vec!["198.51.100.9, 192.0.2.7, 10.2.3.4"],
                "198.51.100.9",
            ),
            (
                "several lines are one list",
                "10.0.0.1",
                vec!["1.1.1.1", "198.51.100.9, 10.0.0.2"],
                "198.51.100.9",
            ),
            (
                "nonsense ends it at the last who is known",
                "10.0.0.1",
                vec!["1.1.1.1, nonsense, 10.0.0.2"],
                "10.0.0.2",
            ),
            ("an empty header says nothing", "10.0.0.1", vec![""], "10.0.0.1"),
            ("all are proxies", "10.0.0.1", vec!["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("a port does not count", "10.0.0.1", vec!["198.51.100.9:4711"], "198.51.100.9"),
            ("nor do brackets", "2001:db8::1", vec!["[2001:db9::9]:4711"], "2001:db9::9"),
            (
                "a mapped address is the one that it maps",
                "::ffff:10.0.0.1",
                vec!["::ffff:198.51.100.9"],
                "198.51.100.9",
            ),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED_FOR, line.parse().unwrap());
            }
            assert_eq!(proxies.client(peer.parse().unwrap(), &headers).to_string(), client, "{why}");
        }
    }

    #[test]
    fn a_list_that_is_none_is_refused() {
        assert_eq!("".parse::<Proxies>(), Ok(Proxies::default()));
        for bad in ["proxy.example", "10.0.0.0/33", "10.0.0"] {
            let error = bad.parse::<Proxies>().unwrap_err();
            assert!(error.contains(bad) && error.contains("10.0.0.0/8"), "{error}");
        }
    }
}
