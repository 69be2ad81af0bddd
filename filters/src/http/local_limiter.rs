//! The buckets of one local rate limit: a default one, one a descriptor, and those that wildcards make. Who asks takes from
//! all that match. It must not know what follows from a refusal.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tidegate_xds::pb::envoy::extensions::common::ratelimit::v3 as pb_common;
use tidegate_xds::pb::envoy::extensions::filters::http::local_ratelimit::v3 as pb;
use tidegate_xds::pb::envoy::r#type::v3 as pb_type;
use tidegate_xds::{Coverage, FieldError};

use super::rate_limit::{Descriptor, Entry, Hits};
use crate::context::CompileContext;
use crate::token_bucket::TokenBucket;

/// The fields that act in the messages compiled here.
pub(super) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.type.v3.TokenBucket",
        enforced: &["max_tokens", "tokens_per_fill", "fill_interval"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.common.ratelimit.v3.LocalRateLimitDescriptor",
        enforced: &["entries", "token_bucket", "shadow_mode"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.common.ratelimit.v3.RateLimitDescriptor.Entry",
        enforced: &["key", "value"],
        listed: &[],
    },
];

/// What a limiter is made from.
#[derive(Clone)]
pub(super) struct Blueprint {
    default: DefaultBucket,
    descriptors: Vec<(Vec<Entry>, Fill, Shadow)>,
    always_take_default: bool,
    /// Buckets that one descriptor with a wildcard may make.
    most_wildcards: usize,
}

#[derive(Clone, Copy)]
enum DefaultBucket {
    /// Without a `token_bucket` nothing is limited.
    None,
    /// `max_tokens: 0` refuses everything, and the response says nothing about it.
    Refuse,
    Fill(Fill),
}

type Shadow = bool;

/// How a bucket fills.
#[derive(Clone, Copy)]
struct Fill {
    max: u32,
    tokens: u32,
    interval: Duration,
}

/// Buckets, and who takes from which.
pub(super) struct Limiter {
    refuses: bool,
    default: Option<Arc<Bucket>>,
    exact: HashMap<Vec<Entry>, Arc<Bucket>, ahash::RandomState>,
    wildcards: Vec<Wildcard>,
    always_take_default: bool,
}

pub(super) struct Bucket {
    pub(super) tokens: TokenBucket,
    /// Only counts those that it would have limited.
    pub(super) shadow: Shadow,
}

impl Bucket {
    fn new(fill: Fill, shadow: Shadow, now: Instant) -> Arc<Self> {
        Arc::new(Self { tokens: TokenBucket::new(fill.max, fill.tokens, fill.interval, now), shadow })
    }

    fn take(&self, hits: Hits, now: Instant) -> bool {
        match hits {
            Hits::Take(tokens) => self.tokens.take(tokens, now),
            Hits::GiveBack(tokens) => {
                self.tokens.put(tokens, now);
                true
            }
        }
    }
}

/// What a limiter says about one request.
pub(super) struct Outcome {
    pub(super) allowed: bool,
    pub(super) bucket: Option<Arc<Bucket>>,
    pub(super) x_ratelimit: Option<bool>,
}

impl Limiter {
    pub(super) fn new(blueprint: &Blueprint, now: Instant) -> Self {
        let wildcard = |entries: &[Entry]| entries.iter().any(|entry| entry.value.is_empty());
        let (wildcards, exact): (Vec<_>, Vec<_>) =
            blueprint.descriptors.iter().cloned().partition(|(entries, ..)| wildcard(entries));
        Self {
            refuses: matches!(blueprint.default, DefaultBucket::Refuse),
            default: match blueprint.default {
                DefaultBucket::Fill(fill) => Some(Bucket::new(fill, false, now)),
                DefaultBucket::None | DefaultBucket::Refuse => None,
            },
            exact: exact.into_iter().map(|(entries, fill, shadow)| (entries, Bucket::new(fill, shadow, now))).collect(),
            wildcards: wildcards
                .into_iter()
                .map(|(pattern, fill, shadow)| Wildcard {
                    pattern,
                    fill,
                    shadow,
                    most: blueprint.most_wildcards,
                    made: Mutex::default(),
                })
                .collect(),
            always_take_default: blueprint.always_take_default,
        }
    }

    /// Takes from the buckets of all descriptors that match, the slowest first, and from the default one.
    pub(super) fn ask(&self, descriptors: &[Descriptor], now: Instant) -> Outcome {
        let mut matched: SmallVec<[(Arc<Bucket>, &Descriptor); 4]> = descriptors
            .iter()
            .filter_map(|descriptor| Some((self.bucket(&descriptor.entries, now)?, descriptor)))
            .collect();
        matched.sort_by(|(a, _), (b, _)| a.tokens.per_second().total_cmp(&b.tokens.per_second()));
        for (bucket, descriptor) in &matched {
            if !bucket.take(descriptor.hits, now) {
                let bucket = Some(Arc::clone(bucket));
                return Outcome { allowed: false, bucket, x_ratelimit: descriptor.x_ratelimit };
            }
        }
        let first = matched.into_iter().next();
        if first.is_none() || self.always_take_default {
            let refused = match &self.default {
                Some(bucket) => !bucket.take(Hits::Take(1), now),
                None => self.refuses,
            };
            if refused {
                return Outcome { allowed: false, bucket: self.default.clone(), x_ratelimit: None };
            }
        }
        match first {
            Some((bucket, descriptor)) => {
                Outcome { allowed: true, bucket: Some(bucket), x_ratelimit: descriptor.x_ratelimit }
            }
            None => Outcome { allowed: true, bucket: self.default.clone(), x_ratelimit: None },
        }
    }

    fn bucket(&self, entries: &[Entry], now: Instant) -> Option<Arc<Bucket>> {
        let exact = self.exact.get(entries).map(Arc::clone);
        exact.or_else(|| self.wildcards.iter().find_map(|wildcard| wildcard.bucket(entries, now)))
    }
}

/// A descriptor with an entry that takes any value: each value has a bucket, of which the least recently used go.
struct Wildcard {
    pattern: Vec<Entry>,
    fill: Fill,
    shadow: Shadow,
    most: usize,
    made: Mutex<Made>,
}

#[derive(Default)]
struct Made {
    buckets: HashMap<Arc<[Entry]>, (u64, Arc<Bucket>), ahash::RandomState>,
    by_use: BTreeMap<u64, Arc<[Entry]>>,
    uses: u64,
}

impl Wildcard {
    fn matches(&self, entries: &[Entry]) -> bool {
        let same = |(pattern, entry): (&Entry, &Entry)| {
            pattern.key == entry.key && (pattern.value.is_empty() || pattern.value == entry.value)
        };
        self.pattern.len() == entries.len() && self.pattern.iter().zip(entries).all(same)
    }

    fn bucket(&self, entries: &[Entry], now: Instant) -> Option<Arc<Bucket>> {
        if !self.matches(entries) {
            return None;
        }
        let mut made = self.made.lock();
        let made = &mut *made;
        made.uses += 1;
        let use_ = made.uses;
        if let Some((last, bucket)) = made.buckets.get_mut(entries) {
            if let Some(key) = made.by_use.remove(last) {
                made.by_use.insert(use_, key);
            }
            *last = use_;
            return Some(Arc::clone(bucket));
        }
        let key: Arc<[Entry]> = entries.into();
        let bucket = Bucket::new(self.fill, self.shadow, now);
        made.by_use.insert(use_, Arc::clone(&key));
        made.buckets.insert(key, (use_, Arc::clone(&bucket)));
        if made.buckets.len() > self.most
            && let Some((_, oldest)) = made.by_use.pop_first()
        {
            made.buckets.remove(&oldest);
        }
        Some(bucket)
    }
}

impl Blueprint {
    pub(super) fn compile(config: &pb::LocalRateLimit, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let default = match &config.token_bucket {
            None => DefaultBucket::None,
            Some(bucket) if bucket.max_tokens == 0 => DefaultBucket::Refuse,
            Some(bucket) => DefaultBucket::Fill(context.within("token_bucket", |c| Fill::compile(bucket, c))?),
        };
        let mut descriptors: Vec<(Vec<Entry>, Fill, Shadow)> = Vec::with_capacity(config.descriptors.len());
        for (index, descriptor) in config.descriptors.iter().enumerate() {
            let compiled =
                context.within_item("descriptors", index, |context| descriptor_bucket(descriptor, context))?;
            if descriptors.iter().any(|(entries, ..)| *entries == compiled.0) {
                let reason = "duplicate descriptor in the local rate descriptor";
                return Err(context.error_at(&format!("descriptors[{index}]"), reason));
            }
            descriptors.push(compiled);
        }
        let most = config.max_dynamic_descriptors.as_ref().map_or(20, |most| most.value);
        let always = config.always_consume_default_token_bucket.as_ref();
        Ok(Self {
            default,
            descriptors,
            always_take_default: always.is_none_or(|always| always.value),
            most_wildcards: usize::try_from(most).unwrap_or(usize::MAX),
        })
    }
}

fn descriptor_bucket(
    descriptor: &pb_common::LocalRateLimitDescriptor,
    context: &mut CompileContext<'_>,
) -> Result<(Vec<Entry>, Fill, Shadow), FieldError> {
    let entry = |entry: &pb_common::rate_limit_descriptor::Entry| Entry {
        key: entry.key.as_str().into(),
        value: entry.value.as_bytes().into(),
    };
    let Some(bucket) = &descriptor.token_bucket else {
        return Err(context.error_at("token_bucket", "a token bucket is required"));
    };
    let fill = context.within("token_bucket", |context| Fill::compile(bucket, context))?;
    Ok((descriptor.entries.iter().map(entry).collect(), fill, descriptor.shadow_mode))
}

impl Fill {
    fn compile(bucket: &pb_type::TokenBucket, context: &CompileContext<'_>) -> Result<Self, FieldError> {
        let interval = bucket.fill_interval.as_ref().map_or(Duration::ZERO, |interval| {
            let seconds = u64::try_from(interval.seconds).unwrap_or(0);
            Duration::new(seconds, u32::try_from(interval.nanos).unwrap_or(0))
        });
        if bucket.max_tokens > 0 && interval < Duration::from_millis(50) {
            return Err(context.error_at("fill_interval", "the fill interval of a token bucket must be >= 50ms"));
        }
        let tokens = bucket.tokens_per_fill.as_ref().map_or(1, |tokens| tokens.value);
        Ok(Self { max: bucket.max_tokens, tokens, interval })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_bucket_goes() {
        let fill = Fill { max: 1, tokens: 1, interval: Duration::from_secs(60) };
        let entry = |value: &str| Entry { key: "u".into(), value: value.as_bytes().into() };
        let wildcard = Wildcard { pattern: vec![entry("")], fill, shadow: false, most: 2, made: Mutex::default() };
        let now = Instant::now();
        let take = |value: &str| wildcard.bucket(&[entry(value)], now).unwrap().take(Hits::Take(1), now);
        assert_eq!([take("a"), take("b"), take("a"), take("c")], [true, true, false, true]);
        assert_eq!([take("a"), take("b")], [false, true], "b went, a was used since");
        assert!(wildcard.bucket(&[], now).is_none());
    }
}
