//! What a client and a server agree on: the lower of both.
use dashstream_proto::session::v1 as wire;

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
}

impl Limits {
    /// The effective limits of a client that asked for `asked`; 0 there means that it sets none.
    pub fn grant(self, asked: Option<wire::Limits>) -> Self {
        let asked = asked.unwrap_or_default();
        let lower = |ours: u32, theirs: u32| if theirs == 0 { ours } else { ours.min(theirs) };
        Self {
            record_bytes_max: lower(self.record_bytes_max, asked.record_bytes_max),
            frame_bytes_max: lower(self.frame_bytes_max, asked.frame_bytes_max),
            client_frame_bytes_max: lower(self.client_frame_bytes_max, asked.client_frame_bytes_max),
        }
    }
}

impl From<Limits> for wire::Limits {
    fn from(limits: Limits) -> Self {
        Self {
            record_bytes_max: limits.record_bytes_max,
            frame_bytes_max: limits.frame_bytes_max,
            client_frame_bytes_max: limits.client_frame_bytes_max,
            in_flight_bytes_max: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_limit_wins_each_on_its_own() {
        let ours = Limits { record_bytes_max: 1_000, frame_bytes_max: 100, client_frame_bytes_max: 10 };
        for (why, asked, granted) in [
            ("nothing asked means ours", (0, 0, 0), (1_000, 100, 10)),
            ("less is granted", (999, 99, 9), (999, 99, 9)),
            ("more is not", (u32::MAX, u32::MAX, u32::MAX), (1_000, 100, 10)),
            ("one by one", (5, 500, 0), (5, 100, 10)),
        ] {
            let wire = wire::Limits {
                record_bytes_max: asked.0,
                frame_bytes_max: asked.1,
                client_frame_bytes_max: asked.2,
                in_flight_bytes_max: 0,
            };
            let got = ours.grant(Some(wire));
            assert_eq!(
                (got.record_bytes_max, got.frame_bytes_max, got.client_frame_bytes_max),
                granted,
                "{why}"
            );
        }
        assert_eq!(ours.grant(None), ours);
    }
}
