//! What Kafka's client complains of while it connects. Its answers to questions only say that nobody answered; why,
//! it says on the side.
use rdkafka::{
    ClientContext,
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
};
use std::sync::{Mutex, PoisonError};

/// The last complaint of a client, until what it was asked is answered.
#[derive(Debug, Default)]
pub struct Trouble(Mutex<Option<String>>);

impl Trouble {
    /// Logs a complaint, and remembers it.
    pub fn note(&self, error: &KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        let text = match settings_behind(code, reason) {
            Some(settings) => format!("{reason} (see {settings})"),
            None => reason.to_owned(),
        };
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some() && code == Some(RDKafkaErrorCode::AllBrokersDown) {
            // It follows on why each of them is, again and again.
            tracing::debug!(%error, reason = text, "kafka");
        } else {
            tracing::warn!(%error, reason = text, "kafka");
            *last = Some(text);
        }
    }

    /// A question was answered: all is well.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The last complaint, if any.
    pub fn last(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An error, with what the client complained of before it.
    pub fn explain(&self, error: &KafkaError) -> String {
        match self.last() {
            Some(reason) => format!("{error}: {reason}"),
            None => error.to_string(),
        }
    }
}

/// Which settings an operator looks at.
fn settings_behind(code: Option<RDKafkaErrorCode>, reason: &str) -> Option<&'static str> {
    use RDKafkaErrorCode as Code;
    if matches!(code, Some(Code::Authentication | Code::SaslAuthenticationFailed)) {
        Some("KAFKA_SASL_MECHANISM, KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD")
    } else if code == Some(Code::SSL) || reason.contains("SSL routines") {
        // What OpenSSL finds while it reads comes as a connection that broke.
        Some("KAFKA_SECURITY_PROTOCOL, KAFKA_SSL_CA, KAFKA_SSL_CERTIFICATE, KAFKA_SSL_ENDPOINT_ALGORITHM")
    } else {
        None
    }
}

impl ClientContext for Trouble {
    fn error(&self, error: KafkaError, reason: &str) {
        self.note(&error, reason);
    }
}

impl ConsumerContext for Trouble {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_explained_by_the_last_complaint_that_says_something() {
        let trouble = Trouble::default();
        let unanswered = KafkaError::MetadataFetch(RDKafkaErrorCode::BrokerTransportFailure);
        assert_eq!(trouble.explain(&unanswered), unanswered.to_string());
        for (code, reason, expected) in [
            (RDKafkaErrorCode::Authentication, "refused", "refused (see KAFKA_SASL_MECHANISM"),
            (RDKafkaErrorCode::AllBrokersDown, "1/1 brokers are down", "refused (see KAFKA_SASL_MECHANISM"),
            (RDKafkaErrorCode::SSL, "handshake failed", "handshake failed (see KAFKA_SECURITY_PROTOCOL"),
            (RDKafkaErrorCode::BrokerTransportFailure, "SSL routines: alert", "alert (see KAFKA_SECURITY"),
            (RDKafkaErrorCode::BrokerTransportFailure, "Connection refused", "failure): Connection refused"),
        ] {
            trouble.note(&KafkaError::Global(code), reason);
            let explained = trouble.explain(&unanswered);
            assert!(explained.contains(expected), "{code}: {explained}");
        }
        trouble.clear();
        assert_eq!(trouble.last(), None);
    }
}
