//! What a connection's filter state says about how a TCP proxy treats it: Envoy's `envoy.tcp_proxy.*` objects.
//! It must not know who put them there.

use std::time::Duration;

use tidegate_filters::filter_state_value::tcp_proxy as keys;
use tidegate_filters::metadata::FilterState;
use xxhash_rust::xxh64::xxh64;

/// `hash_policy`: what hashing balancers choose a host by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TcpHash {
    SourceIp,
    /// An object of the filter state that can be hashed.
    FilterState(Box<str>),
}

/// The wishes of one connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PerConnection {
    /// A cluster in place of the configured one; weighted ones go before it, as in Envoy.
    pub cluster: Option<String>,
    pub disable_tunneling: bool,
    /// In place of `idle_timeout`; 0 is none.
    pub idle_timeout: Option<Option<Duration>>,
}

impl PerConnection {
    pub(super) fn of(state: &FilterState) -> Self {
        let text = |key| state.get(key).and_then(|object| object.text());
        let millis = text(keys::IDLE_TIMEOUT_MILLIS).and_then(|text| text.parse().ok());
        Self {
            cluster: text(keys::CLUSTER),
            disable_tunneling: text(keys::DISABLE_TUNNELING).is_some_and(|text| text == "true"),
            idle_timeout: millis.map(|millis| Some(Duration::from_millis(millis)).filter(|idle| !idle.is_zero())),
        }
    }
}

impl TcpHash {
    pub(super) fn of(&self, remote: Option<std::net::SocketAddr>, state: &FilterState) -> Option<u64> {
        match self {
            Self::SourceIp => {
                Some(xxh64(remote.map(|remote| remote.ip().to_string()).unwrap_or_default().as_bytes(), 0))
            }
            Self::FilterState(key) => state.get(key)?.hash(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidegate_filters::metadata::{HashableText, Sharing, Text};

    use super::*;

    #[test]
    fn wishes_are_read_from_their_keys() {
        let mut state = FilterState::default();
        assert_eq!(PerConnection::of(&state), PerConnection::default());
        for (key, text) in [(keys::CLUSTER, "c"), (keys::DISABLE_TUNNELING, "true"), (keys::IDLE_TIMEOUT_MILLIS, "0")] {
            state.set(key, Arc::new(Text(text.to_owned())), false, Sharing::None);
        }
        let wishes = PerConnection::of(&state);
        assert_eq!(
            (wishes.cluster.as_deref(), wishes.disable_tunneling, wishes.idle_timeout),
            (Some("c"), true, Some(None))
        );
    }

    #[test]
    fn only_what_can_be_hashed_is() {
        let mut state = FilterState::default();
        state.set("h", Arc::new(HashableText("v".to_owned())), false, Sharing::None);
        state.set("t", Arc::new(Text("v".to_owned())), false, Sharing::None);
        let of = |key: &str| TcpHash::FilterState(key.into()).of(None, &state);
        assert_eq!((of("h"), of("t"), of("n")), (Some(xxh64(b"v", 0)), None, None));
    }
}
