//! `envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit`: closes connections while a bucket is empty.
//! It must not know how a connection is closed.
//!
//! Acts: all fields. The bucket lives as long as the configuration, or as any that shares it, as in Envoy.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tidegate_stats::stats_block;
use tidegate_xds::pb::envoy::extensions::filters::network::local_ratelimit::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::{Closing, NetworkFilter, NetworkFilterConfig, NetworkFilterFactory, NetworkStep};
use crate::connection::ConnectionInfo;
use crate::context::CompileContext;
use crate::runtime::{Keyed, Runtime};
use crate::shown::Tags;
use crate::stream_info::ResponseFlags;
use crate::token_bucket::TokenBucket;

const MESSAGE: &str = "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit";
/// Envoy's `%DOWNSTREAM_LOCAL_CLOSE_REASON%`.
const REFUSED: &str = "local_ratelimit_close_over_limit";

stats_block! {
    struct Stats {
        counters { rate_limited }
        gauges {}
        histograms {}
    }
}

/// What buckets are shared by: the key, and how they fill.
type ShareKey = (String, u32, u32, Duration);

/// The buckets with a `share_key`. Listeners are compiled apart from one another, so there is one list for the process, as in
/// Envoy; who uses a bucket keeps it.
static SHARED: Mutex<BTreeMap<ShareKey, Weak<TokenBucket>>> = Mutex::new(BTreeMap::new());

fn shared(key: ShareKey, make: impl FnOnce() -> TokenBucket) -> Arc<TokenBucket> {
    let mut buckets = SHARED.lock();
    buckets.retain(|_, bucket| bucket.strong_count() > 0);
    if let Some(bucket) = buckets.get(&key).and_then(Weak::upgrade) {
        return bucket;
    }
    let bucket = Arc::new(make());
    buckets.insert(key, Arc::downgrade(&bucket));
    bucket
}

struct Config {
    stats: Stats,
    bucket: Arc<TokenBucket>,
    enabled: Option<Keyed<bool>>,
}

impl NetworkFilterConfig for Config {
    fn new_connection(self: Arc<Self>) -> Option<Box<dyn NetworkFilter>> {
        Some(Box::new(Filter(self)))
    }
}

struct Filter(Arc<Config>);

impl NetworkFilter for Filter {
    fn goes_first(&self) -> bool {
        true
    }

    fn on_connection<'a>(
        &'a mut self,
        connection: &'a mut ConnectionInfo,
        runtime: &'a dyn Runtime,
    ) -> NetworkStep<'a> {
        let config = &self.0;
        let off = config.enabled.as_ref().is_some_and(|enabled| !enabled.get(runtime));
        if off || config.bucket.take(1, Instant::now()) {
            return NetworkStep::Continue;
        }
        tracing::trace!("{} local_rate_limit: rate limiting connection", Tags::connection(connection.id));
        config.stats.rate_limited().inc();
        // The flag is Envoy's.
        let flags = ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED;
        NetworkStep::Close(Closing { flags, ..Closing::new(REFUSED) })
    }
}

pub(super) struct Factory;

impl NetworkFilterFactory for Factory {
    fn message(&self) -> &'static str {
        MESSAGE
    }

    fn coverage(&self) -> &'static [Coverage] {
        &[
            Coverage {
                message: MESSAGE,
                enforced: &["stat_prefix", "token_bucket", "runtime_enabled", "share_key"],
                listed: &[],
            },
            Coverage {
                message: "envoy.type.v3.TokenBucket",
                enforced: &["max_tokens", "tokens_per_fill", "fill_interval"],
                listed: &[],
            },
        ]
    }

    fn compile(
        &self,
        config: &[u8],
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<dyn NetworkFilterConfig>, FieldError> {
        let config: pb::LocalRateLimit = context.decode(config)?;
        let Some(bucket) = &config.token_bucket else { return Err(context.error_at("token_bucket", "must be set")) };
        let interval = super::milliseconds(bucket.fill_interval.as_ref());
        if interval < Duration::from_millis(50) {
            let reason = "the fill interval of a token bucket must be >= 50ms";
            return Err(context.error_at("token_bucket.fill_interval", reason));
        }
        let tokens = bucket.tokens_per_fill.as_ref().map_or(1, |tokens| tokens.value);
        let scope = context.stats.root().scope(&format!("local_rate_limit.{}.", config.stat_prefix));
        let make = || TokenBucket::new(bucket.max_tokens, tokens, interval, Instant::now());
        Ok(Arc::new(Config {
            stats: Stats::new(&scope),
            bucket: match config.share_key.as_str() {
                "" => Arc::new(make()),
                key => shared((key.to_owned(), bucket.max_tokens, tokens, interval), make),
            },
            enabled: config.runtime_enabled.as_ref().map(Keyed::compile),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::testing::*;

    fn open(config: &Arc<dyn NetworkFilterConfig>) -> Option<String> {
        let mut filter = Arc::clone(config).new_connection().unwrap();
        closed(filter.on_connection(&mut connection(), &NoRuntime))
    }

    #[test]
    fn the_third_of_two_is_closed() {
        let bench = Bench::new(&Factory);
        let config = bench.compile("{stat_prefix: p, token_bucket: {max_tokens: 2, fill_interval: 3600s}}").unwrap();
        let told = [0, 1, 2].map(|_| open(&config));
        assert_eq!(told, [None, None, Some("local_ratelimit_close_over_limit".to_owned())]);
        assert_eq!(bench.counted(), ["local_rate_limit.p.rate_limited: 1"]);
    }

    #[test]
    fn it_may_be_off_and_fills_no_faster_than_envoys() {
        let bench = Bench::new(&Factory);
        let bucket = "token_bucket: {max_tokens: 1, fill_interval: 3600s}";
        let config = bench.compile(&format!(
            "{{stat_prefix: p, {bucket}, runtime_enabled: {{default_value: false, runtime_key: k}}}}"
        ));
        let config = config.unwrap();
        assert_eq!([0, 1, 2].map(|_| open(&config)), [None, None, None]);
        let fast = bench.compile("{stat_prefix: p, token_bucket: {max_tokens: 2, fill_interval: 0.01s}}");
        assert!(fast.err().unwrap().contains(">= 50ms"));
    }

    #[test]
    fn filters_of_one_key_share_their_bucket() {
        let bench = Bench::new(&Factory);
        let config = |max: u32| {
            let bucket = format!("token_bucket: {{max_tokens: {max}, fill_interval: 3600s}}");
            bench.compile(&format!("{{stat_prefix: p, {bucket}, share_key: of the test}}")).unwrap()
        };
        let (first, second, other) = (config(1), config(1), config(2));
        assert_eq!((open(&first), open(&other)), (None, None));
        assert!(open(&second).is_some());
        drop((first, second));
        assert_eq!(open(&config(1)), None, "a new bucket");
    }
}
