//! What can be wrong with a format. The words are Envoy's where Envoy has any.

/// Why a format does not compile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("Incorrect configuration: {format}. Couldn't find valid command at position {position}")]
    NoCommand { format: String, position: usize },
    #[error("Not supported field in StreamInfo: {0}")]
    UnknownOperator(String),
    #[error("{0} does not take any parameters or length")]
    CommandOnly(&'static str),
    #[error("{0} requires parameters")]
    ParametersRequired(&'static str),
    #[error("{0} does not allow length to be specified.")]
    NoLength(&'static str),
    #[error("{0}")]
    Parameter(String),
    /// A `json_format` holds what cannot be formatted.
    #[error(
        "Only string values, nested structs, list values and number values are supported in structured access log format."
    )]
    Structure,
}
