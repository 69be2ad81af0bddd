//! `RateLimit`: what a request is counted under. Its actions each give an entry of one descriptor, and one that gives none
//! drops the whole descriptor. It must not know who counts, nor how many are too many.

use std::sync::Arc;

use tidegate_xds::pb::envoy::config::route::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::rate_limit_action::{self, Action, Found};
use super::{RequestHead, StreamContext};
use crate::context::CompileContext;
use crate::format::Format;
use crate::matching::{count, gather};
use crate::runtime;

/// The fields that act in the messages compiled here.
const OWN_COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.route.v3.RateLimit",
        enforced: &["stage", "disable_key", "actions", "hits_addend", "x_ratelimit_option", "apply_on_stream_done"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.route.v3.RateLimit.HitsAddend",
        enforced: &["number", "format", "is_negative_hits"],
        listed: &[],
    },
];
const GROUPS: [&[Coverage]; 2] = [OWN_COVERAGE, rate_limit_action::COVERAGE];
pub const COVERAGE: &[Coverage] = &gather::<{ count(&GROUPS) }>(&GROUPS);

/// One entry of a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    pub key: Arc<str>,
    pub value: Box<[u8]>,
}

/// What a request is counted under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    pub entries: Vec<Entry>,
    pub hits: Hits,
    /// Whether the answer says how much is left; `None` leaves it to the filter.
    pub x_ratelimit: Option<bool>,
}

/// How much a request counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hits {
    Take(u64),
    GiveBack(u64),
}

/// A compiled `RateLimit`.
#[derive(Debug)]
pub struct RateLimit {
    /// Which filter of a chain it is for.
    pub stage: u32,
    /// A runtime key that may turn it off; local limits never count one that has a key, as in Envoy.
    pub disable_key: Option<Arc<str>>,
    actions: Vec<Action>,
    hits: Addend,
    x_ratelimit: Option<bool>,
    /// For a filter that counts when the stream is over, which local limits never do.
    pub on_stream_done: bool,
}

#[derive(Debug)]
struct Addend {
    number: Number,
    gives_back: bool,
}

#[derive(Debug)]
enum Number {
    Fixed(u64),
    /// Of the request; what is no number, or too large, drops the descriptor.
    Format(Format),
}

const MOST_HITS: u64 = 1_000_000_000;

impl Addend {
    fn compile(addend: Option<&pb::rate_limit::HitsAddend>, context: &CompileContext<'_>) -> Result<Self, FieldError> {
        let Some(addend) = addend else { return Ok(Self { number: Number::Fixed(1), gives_back: false }) };
        let bad = |reason: &str| context.error_at("hits_addend", reason);
        let number = match (&addend.number, addend.format.as_str()) {
            (Some(_), format) if !format.is_empty() => {
                return Err(bad("hits_addend must contain either a format or a number, not both"));
            }
            (Some(number), _) => Number::Fixed(number.value),
            (None, "") => return Err(bad("must contain either a format or a number")),
            (None, format) => {
                let format = Format::compile_omitting_empty(format).map_err(|error| bad(&error.to_string()))?;
                if !format.is_one_operator() {
                    return Err(bad("hits_addend format must contain exactly one substitution field"));
                }
                Number::Format(format)
            }
        };
        Ok(Self { number, gives_back: addend.is_negative_hits })
    }

    fn hits(&self, head: &RequestHead, stream: &StreamContext) -> Option<Hits> {
        let number = match &self.number {
            Number::Fixed(number) => *number,
            Number::Format(format) => {
                let text = rate_limit_action::rendered(format, head, stream);
                std::str::from_utf8(&text).ok()?.parse().ok().filter(|number| *number <= MOST_HITS)?
            }
        };
        Some(if self.gives_back { Hits::GiveBack(number) } else { Hits::Take(number) })
    }
}

impl RateLimit {
    pub fn compile(limit: &pb::RateLimit, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        use pb::rate_limit::XRateLimitOption;
        let compile = |(index, action)| context.within_item("actions", index, |c| Action::compile(action, c));
        let actions = limit.actions.iter().enumerate().map(compile).collect::<Result<_, _>>()?;
        let hits = Addend::compile(limit.hits_addend.as_ref(), context)?;
        let x_ratelimit = match XRateLimitOption::try_from(limit.x_ratelimit_option) {
            Ok(XRateLimitOption::Off) => Some(false),
            Ok(XRateLimitOption::DraftVersion03) => Some(true),
            Ok(XRateLimitOption::Unspecified) | Err(_) => None,
        };
        let stage = limit.stage.map_or(0, |stage| stage.value);
        Ok(Self {
            stage,
            disable_key: runtime::key(&limit.disable_key),
            actions,
            hits,
            x_ratelimit,
            on_stream_done: limit.apply_on_stream_done,
        })
    }

    /// Compiles a repeated field of them.
    pub fn compile_all(
        field: &str,
        limits: &[pb::RateLimit],
        context: &mut CompileContext<'_>,
    ) -> Result<Vec<Self>, FieldError> {
        let compile = |(index, limit)| context.within_item(field, index, |c| Self::compile(limit, c));
        limits.iter().enumerate().map(compile).collect()
    }

    /// Compiles a filter's own ones: Envoy takes neither stage nor key to disable there.
    pub fn compile_own(
        field: &str,
        limits: &[pb::RateLimit],
        context: &mut CompileContext<'_>,
    ) -> Result<Vec<Self>, FieldError> {
        let staged = |limit: &pb::RateLimit| limit.stage.is_some() || !limit.disable_key.is_empty();
        match limits.iter().position(staged) {
            Some(index) => {
                let reason = "'stage' field and 'disable_key' field are not supported";
                Err(context.within_item(field, index, |context| context.error(reason)))
            }
            None => Self::compile_all(field, limits, context),
        }
    }

    /// The descriptor of a request; `None` when an action gives no entry and may not be skipped.
    pub fn descriptor(&self, head: &RequestHead, stream: &StreamContext) -> Option<Descriptor> {
        let mut entries = Vec::with_capacity(self.actions.len());
        for action in &self.actions {
            match action.entry(head, stream) {
                Found::Entry(entry) => entries.push(entry),
                Found::Skipped => {}
                Found::Dropped => return None,
            }
        }
        Some(Descriptor { entries, hits: self.hits.hits(head, stream)?, x_ratelimit: self.x_ratelimit })
    }
}
