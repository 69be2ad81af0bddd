//! `envoy.extensions.access_loggers.file.v3.FileAccessLog`, and `StdoutAccessLog` and `StderrAccessLog` of
//! `envoy.extensions.access_loggers.stream.v3`. They must not know how lines reach the disk.

use std::path::PathBuf;
use std::sync::Arc;

use tidegate_xds::pb::envoy::config::core::v3::SubstitutionFormatString;
use tidegate_xds::pb::envoy::extensions::access_loggers::{file::v3 as file, stream::v3 as stream};
use tidegate_xds::{Coverage, FieldError, any};

use super::sink::{Destination, Sink};
use super::{Logger, LoggerFactory};
use crate::context::CompileContext;
use crate::format::{Format, FormatContext, FormatError, SubstitutionFormat};

/// The fields that act in the messages compiled here.
pub(super) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        enforced: &["path", "format", "json_format", "typed_json_format", "log_format"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
        enforced: &["log_format"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.access_loggers.stream.v3.StderrAccessLog",
        enforced: &["log_format"],
        listed: &[],
    },
];

/// Envoy's line where no format is given.
const DEFAULT_FORMAT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% ",
    "\"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" ",
    "\"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n",
);

pub(super) struct FileFactory;
pub(super) struct StdoutFactory;
pub(super) struct StderrFactory;

struct FileLogger {
    format: SubstitutionFormat,
    sink: Arc<Sink>,
}

impl Logger for FileLogger {
    fn log(&self, context: &FormatContext<'_>) {
        self.sink.append(|out| self.format.render(context, out));
    }
}

impl LoggerFactory for FileFactory {
    fn message(&self) -> &'static str {
        "envoy.extensions.access_loggers.file.v3.FileAccessLog"
    }

    #[expect(deprecated, reason = "Envoy takes the deprecated formats too")]
    fn compile(&self, config: &[u8], context: &mut CompileContext<'_>) -> Result<Box<dyn Logger>, FieldError> {
        use file::file_access_log::AccessLogFormat;
        let config: file::FileAccessLog = any::decode(config, &context.path)?;
        let at = |field: &str, error: &FormatError| context.error_at(field, error.to_string());
        let format = match &config.access_log_format {
            None => default_format(context)?,
            Some(AccessLogFormat::Format(format)) if format.is_empty() => default_format(context)?,
            Some(AccessLogFormat::Format(format)) => {
                Format::compile(format).map(SubstitutionFormat::text).map_err(|error| at("format", &error))?
            }
            Some(AccessLogFormat::JsonFormat(template)) => {
                SubstitutionFormat::json(template).map_err(|error| at("json_format", &error))?
            }
            Some(AccessLogFormat::TypedJsonFormat(template)) => {
                SubstitutionFormat::json(template).map_err(|error| at("typed_json_format", &error))?
            }
            Some(AccessLogFormat::LogFormat(format)) => log_format(Some(format), context)?,
        };
        let destination = Destination::File(PathBuf::from(&config.path));
        let sink = Sink::open(destination, &context.stats)
            .map_err(|error| context.error_at("path", format!("unable to open file '{}': {error}", config.path)))?;
        Ok(Box::new(FileLogger { format, sink }))
    }
}

impl LoggerFactory for StdoutFactory {
    fn message(&self) -> &'static str {
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"
    }

    fn compile(&self, config: &[u8], context: &mut CompileContext<'_>) -> Result<Box<dyn Logger>, FieldError> {
        let config: stream::StdoutAccessLog = any::decode(config, &context.path)?;
        let stream::stdout_access_log::AccessLogFormat::LogFormat(format) = match config.access_log_format {
            Some(format) => format,
            None => return to_stream(Destination::Stdout, None, context),
        };
        to_stream(Destination::Stdout, Some(&format), context)
    }
}

impl LoggerFactory for StderrFactory {
    fn message(&self) -> &'static str {
        "envoy.extensions.access_loggers.stream.v3.StderrAccessLog"
    }

    fn compile(&self, config: &[u8], context: &mut CompileContext<'_>) -> Result<Box<dyn Logger>, FieldError> {
        let config: stream::StderrAccessLog = any::decode(config, &context.path)?;
        let stream::stderr_access_log::AccessLogFormat::LogFormat(format) = match config.access_log_format {
            Some(format) => format,
            None => return to_stream(Destination::Stderr, None, context),
        };
        to_stream(Destination::Stderr, Some(&format), context)
    }
}

fn to_stream(
    destination: Destination,
    format: Option<&SubstitutionFormatString>,
    context: &mut CompileContext<'_>,
) -> Result<Box<dyn Logger>, FieldError> {
    let format = log_format(format, context)?;
    let sink = Sink::open(destination, &context.stats).map_err(|error| context.error(error.to_string()))?;
    Ok(Box::new(FileLogger { format, sink }))
}

fn log_format(
    format: Option<&SubstitutionFormatString>,
    context: &mut CompileContext<'_>,
) -> Result<SubstitutionFormat, FieldError> {
    match format {
        Some(format) => context.within("log_format", |context| SubstitutionFormat::compile(format, context)),
        None => default_format(context),
    }
}

fn default_format(context: &CompileContext<'_>) -> Result<SubstitutionFormat, FieldError> {
    Format::compile(DEFAULT_FORMAT).map(SubstitutionFormat::text).map_err(|error| context.error(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, UNIX_EPOCH};

    use http::{HeaderValue, Method, StatusCode};
    use prost::Message as _;
    use tidegate_xds::pb::envoy::config::accesslog::v3 as accesslog;

    use super::*;
    use crate::access_log::{AccessLog, flush_all};
    use crate::connection::ConnectionInfo;
    use crate::http::{RequestHead, ResponseHead};
    use crate::matching::testing::{error, ok};
    use crate::stream_info::{Address, StreamInfo};

    fn log(path: &str, access_log_format: Option<file::file_access_log::AccessLogFormat>) -> accesslog::AccessLog {
        let config = file::FileAccessLog { path: path.to_owned(), access_log_format };
        accesslog::AccessLog {
            name: "log".to_owned(),
            filter: None,
            config_type: Some(accesslog::access_log::ConfigType::TypedConfig(any::pack(&config))),
        }
    }

    fn stream() -> (StreamInfo, RequestHead, ResponseHead) {
        let start = Instant::now();
        let address = Address::Ip("127.0.0.1:1".parse().unwrap());
        let connection = ConnectionInfo::new(1, address.clone(), address.clone(), start);
        let started = UNIX_EPOCH + Duration::from_millis(1_795_490_455_690);
        let mut info = StreamInfo::new(Arc::new(connection), start, started);
        info.end = Some(start);
        info.protocol = Some(http::Version::HTTP_11);
        info.response_code = Some(StatusCode::CREATED);
        info.bytes.body_sent = 3;
        info.upstream.host = Some(address);
        let mut request =
            RequestHead::new(Method::GET, HeaderValue::from_static("h"), HeaderValue::from_static("/direct"));
        request.headers.insert("x-request-id", HeaderValue::from_static("27f21ef4"));
        let response = ResponseHead::new(StatusCode::CREATED);
        (info, request, response)
    }

    #[test]
    fn the_default_line_is_envoys() {
        let path = std::env::temp_dir().join(format!("tidegate-default-{}", std::process::id()));
        let compiled = ok(|c| AccessLog::compile(&log(path.to_str().unwrap(), None), c));
        let (info, request, response) = stream();
        let context = FormatContext { request: Some(&request), response: Some(&response), ..FormatContext::of(&info) };
        compiled.log(&context);
        flush_all();
        let expected = "[2026-11-24T03:20:55.690Z] \"GET /direct HTTP/1.1\" 201 - 0 3 0 - \"-\" \"-\" \"27f21ef4\" \
                        \"h\" \"127.0.0.1:1\"\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        std::fs::remove_file(&path).unwrap();
    }

    /// `cargo test -p tidegate-filters --release measure -- --ignored --nocapture` prints nanoseconds a line.
    #[test]
    #[ignore = "a measurement, not a test"]
    fn measure_the_default_line() {
        let (info, request, response) = stream();
        let context = FormatContext { request: Some(&request), response: Some(&response), ..FormatContext::of(&info) };
        let format = Format::compile(DEFAULT_FORMAT).unwrap();
        let mut out = Vec::with_capacity(1 << 10);
        let lines = 1_000_000;
        let start = Instant::now();
        for _ in 0..lines {
            out.clear();
            format.render(std::hint::black_box(&context), &mut out);
        }
        println!("render: {} ns", start.elapsed().as_nanos() / lines);
        let compiled = ok(|c| AccessLog::compile(&log("/dev/null", None), c));
        let start = Instant::now();
        for _ in 0..lines {
            compiled.log(std::hint::black_box(&context));
        }
        println!("log: {} ns", start.elapsed().as_nanos() / lines);
    }

    #[test]
    fn errors_name_their_field() {
        let missing = error(|c| AccessLog::compile(&log("/nonexistent/x", None), c));
        assert!(
            missing.starts_with("typed_config.path: unable to open file '/nonexistent/x': No such file"),
            "{missing}"
        );
        #[expect(deprecated, reason = "Envoy takes it")]
        let format = file::file_access_log::AccessLogFormat::Format("%FOO%".to_owned());
        let bad = error(|c| AccessLog::compile(&log("/dev/null", Some(format)), c));
        assert_eq!(bad, "typed_config.format: Not supported field in StreamInfo: FOO");
        let mut other = log("/dev/null", None);
        if let Some(accesslog::access_log::ConfigType::TypedConfig(config)) = &mut other.config_type {
            config.type_url =
                "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig".into();
        }
        let refused = error(|c| AccessLog::compile(&other, c));
        assert!(refused.starts_with("typed_config: not supported yet: type.googleapis.com/envoy"), "{refused}");
        assert!(file::FileAccessLog::decode(&b"\xff"[..]).is_err());
    }
}
