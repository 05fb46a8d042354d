//! What a client and a server agree on: the lower of both, and who set it.
use dashstream_proto::session::v1::{self as wire, LimitSource};

/// Limits of a session. All are at least 1, but `in_flight_bytes_max`, where 0 means that only the socket
/// limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest record payload that is sent, bytes. A larger one becomes a notice.
    pub record_bytes_max: u32,
    /// Largest frame to the client, bytes. A frame always carries at least one record.
    pub frame_bytes_max: u32,
    /// Largest frame from the client, bytes.
    pub client_frame_bytes_max: u32,
    /// Most bytes on their way to a client that gives credit.
    pub in_flight_bytes_max: u64,
}

/// The effective limits, and who set each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grant {
    pub limits: Limits,
    pub by: wire::LimitedBy,
}

impl Limits {
    /// What a client gets that asked for `asked`; 0 there means that it sets none, and for bytes in flight that it
    /// gives no credit.
    pub fn grant(self, asked: Option<wire::Limits>) -> Grant {
        let asked = asked.unwrap_or_default();
        let (record_bytes_max, by_record) = lower(self.record_bytes_max, asked.record_bytes_max);
        let (frame_bytes_max, by_frame) = lower(self.frame_bytes_max, asked.frame_bytes_max);
        let (client_frame_bytes_max, by_client_frame) =
            lower(self.client_frame_bytes_max, asked.client_frame_bytes_max);
        let (in_flight_bytes_max, by_in_flight) = match asked.in_flight_bytes_max {
            0 => (0, LimitSource::Unspecified),
            asked => lower(self.in_flight_bytes_max, asked),
        };
        Grant {
            limits: Self { record_bytes_max, frame_bytes_max, client_frame_bytes_max, in_flight_bytes_max },
            by: wire::LimitedBy {
                record_bytes_max: by_record.into(),
                frame_bytes_max: by_frame.into(),
                client_frame_bytes_max: by_client_frame.into(),
                in_flight_bytes_max: by_in_flight.into(),
            },
        }
    }
}

/// The lower limit, and whose it is: the server's where both are equal.
fn lower<T: Ord + Default>(ours: T, theirs: T) -> (T, LimitSource) {
    if theirs == T::default() || theirs >= ours {
        (ours, LimitSource::Server)
    } else {
        (theirs, LimitSource::Client)
    }
}

impl From<Limits> for wire::Limits {
    fn from(limits: Limits) -> Self {
        Self {
            record_bytes_max: limits.record_bytes_max,
            frame_bytes_max: limits.frame_bytes_max,
            client_frame_bytes_max: limits.client_frame_bytes_max,
            in_flight_bytes_max: limits.in_flight_bytes_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_limit_wins_each_on_its_own_and_is_named() {
        let ours = Limits {
            record_bytes_max: 1_000,
            frame_bytes_max: 100,
            client_frame_bytes_max: 10,
            in_flight_bytes_max: 500,
        };
        let (server, client, nobody) = (LimitSource::Server, LimitSource::Client, LimitSource::Unspecified);
        for (why, asked, granted, by) in [
            ("nothing asked means ours", (0, 0, 0, 0), (1_000, 100, 10, 0), [server, server, server, nobody]),
            ("less is granted", (999, 99, 9, 499), (999, 99, 9, 499), [client; 4]),
            ("more is not", (u32::MAX, u32::MAX, u32::MAX, u64::MAX), (1_000, 100, 10, 500), [server; 4]),
            ("one by one", (5, 500, 0, 500), (5, 100, 10, 500), [client, server, server, server]),
        ] {
            let wire = wire::Limits {
                record_bytes_max: asked.0,
                frame_bytes_max: asked.1,
                client_frame_bytes_max: asked.2,
                in_flight_bytes_max: asked.3,
            };
            let got = ours.grant(Some(wire));
            let limits = got.limits;
            assert_eq!(
                (
                    limits.record_bytes_max,
                    limits.frame_bytes_max,
                    limits.client_frame_bytes_max,
                    limits.in_flight_bytes_max
                ),
                granted,
                "{why}"
            );
            let named = got.by;
            assert_eq!(
                [
                    named.record_bytes_max,
                    named.frame_bytes_max,
                    named.client_frame_bytes_max,
                    named.in_flight_bytes_max
                ],
                by.map(i32::from),
                "{why}"
            );
        }
    }
}
