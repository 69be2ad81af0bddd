//! Access logs: which streams are logged (`filter`), how a line looks (`format`, next door) and where it goes (`sink`).
//! They must not know who decides that a stream is over.

mod file;
mod filter;
mod sink;

pub use filter::Filter;
pub use sink::{flush_all, register_stats, reopen_all, set_flush_interval, set_flush_min_size};
use tidegate_xds::pb::envoy::config::accesslog::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use crate::context::CompileContext;
use crate::format::FormatContext;
use crate::matching::{count, gather};

const GROUPS: &[&[Coverage]] = &[
    &[Coverage {
        message: "envoy.config.accesslog.v3.AccessLog",
        enforced: &["filter", "typed_config"],
        listed: &[("name", "loggers are found by the type of their configuration")],
    }],
    file::COVERAGE,
    filter::COVERAGE,
];

/// Which fields act in access logs, their filters and loggers.
pub const COVERAGE: &[Coverage] = &gather::<{ count(GROUPS) }>(GROUPS);

/// Writes the lines of streams.
pub trait Logger: Send + Sync {
    fn log(&self, context: &FormatContext<'_>);
}

/// Makes a logger from its proto; registered in one sorted list.
pub trait LoggerFactory: Send + Sync {
    /// The full name of the configuration's message.
    fn message(&self) -> &'static str;

    /// # Errors
    /// What is wrong with the configuration, at its field.
    fn compile(&self, config: &[u8], context: &mut CompileContext<'_>) -> Result<Box<dyn Logger>, FieldError>;
}

/// Every built-in one, sorted by message: one line each.
pub const FACTORIES: &[&dyn LoggerFactory] = &[&file::FileFactory, &file::StderrFactory, &file::StdoutFactory];

/// A compiled `AccessLog`.
pub struct AccessLog {
    filter: Option<Filter>,
    logger: Box<dyn Logger>,
}

impl AccessLog {
    /// A log file is opened here, and one that cannot be opened refuses the configuration, as in Envoy: the one thing
    /// that a compile step touches.
    ///
    /// # Errors
    /// A filter or logger that is not supported or does not compile.
    pub fn compile(log: &pb::AccessLog, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let filter = log.filter.as_ref().map(|filter| context.within("filter", |c| Filter::compile(filter, c)));
        let filter = filter.transpose()?;
        let Some(pb::access_log::ConfigType::TypedConfig(config)) = &log.config_type else {
            return Err(context.error("a typed_config is required"));
        };
        let name = tidegate_xds::any::type_name(&config.type_url);
        let factory = FACTORIES.iter().find(|factory| Some(factory.message()) == name);
        let Some(factory) = factory else {
            return Err(context.error_at("typed_config", format!("not supported yet: {}", config.type_url)));
        };
        let logger = context.within("typed_config", |context| factory.compile(&config.value, context))?;
        Ok(Self { filter, logger })
    }

    /// Writes the stream's line, if the filter lets it.
    pub fn log(&self, context: &FormatContext<'_>) {
        if self.filter.as_ref().is_none_or(|filter| filter.matches(context)) {
            self.logger.log(context);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted() {
        assert!(FACTORIES.windows(2).all(|pair| pair[0].message() < pair[1].message()));
    }

    #[test]
    fn every_name_in_the_coverage_exists() {
        let all = COVERAGE.iter().chain(crate::matching::COVERAGE).chain(crate::format::COVERAGE);
        assert_eq!(all.flat_map(Coverage::mistakes).collect::<Vec<_>>(), Vec::<String>::new());
    }
}
