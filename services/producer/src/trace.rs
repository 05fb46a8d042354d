//! The trace that a run belongs to, as W3C's headers have it.

/// What is sent along with each message of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub(crate) traceparent: String,
    pub(crate) tracestate: Option<String>,
}

impl TraceContext {
    /// `traceparent` as it stands in the header: version, trace id, parent id and flags in lower-case hex. `None` if it
    /// is none; a trace that can't be followed is not worth an error.
    pub fn new(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let parts: Vec<_> = traceparent.split('-').collect();
        let hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
        let sound = match parts[..] {
            ["00", trace, parent, flags] => {
                (trace.len(), parent.len(), flags.len()) == (32, 16, 2)
                    && [trace, parent, flags].into_iter().all(hex)
                    && !zero(trace)
                    && !zero(parent)
            }
            _ => false,
        };
        let tracestate = tracestate.filter(|state| !state.is_empty()).map(str::to_owned);
        sound.then(|| Self { traceparent: traceparent.to_owned(), tracestate })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sound_traceparent_is_sent_along() {
        let sound = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(TraceContext::new(sound, Some("vendor=1")).is_some());
        for broken in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::new(broken, None), None, "{broken}");
        }
    }
}
