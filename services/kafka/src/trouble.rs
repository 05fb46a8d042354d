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
        let text = match code.and_then(settings_behind) {
            Some(settings) => format!("{reason} (see {settings})"),
            None => reason.to_owned(),
        };
        tracing::warn!(%error, reason = text, "kafka");
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // That all brokers are down follows on why each is.
        if last.is_none() || code != Some(RDKafkaErrorCode::AllBrokersDown) {
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
fn settings_behind(code: RDKafkaErrorCode) -> Option<&'static str> {
    if matches!(code, RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed) {
        Some("KAFKA_SASL_MECHANISM, KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD")
    } else if code == RDKafkaErrorCode::SSL {
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
        trouble.note(&KafkaError::Global(RDKafkaErrorCode::Authentication), "the login is refused");
        trouble.note(&KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        let explained = trouble.explain(&unanswered);
        assert!(explained.contains("the login is refused (see KAFKA_SASL_MECHANISM"), "{explained}");
        trouble.clear();
        assert_eq!(trouble.last(), None);
    }
}
