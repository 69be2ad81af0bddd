//! `Http1ProtocolOptions` and `Http2ProtocolOptions` as compiled values, for either side.
//! It must not know which side it compiles for.

use tidegate_filters::context::CompileContext;
use tidegate_xds::pb::envoy::config::core::v3::http1_protocol_options::header_key_format::HeaderFormat;
use tidegate_xds::pb::envoy::config::core::v3::{Http1ProtocolOptions, Http2ProtocolOptions, KeepaliveSettings};
use tidegate_xds::pb::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
use tidegate_xds::pb::envoy::extensions::http::header_formatters::preserve_case::v3::preserve_case_formatter_config::FormatterTypeOnEnvoyHeaders;
use tidegate_xds::pb::google::protobuf::UInt32Value;
use tidegate_xds::{FieldError, any};

use super::values::duration;
use crate::http::protocol::{FloodLimits, HeaderCase, Http1Options, Http2Options, Keepalive, Preserved};

/// HTTP/1 options; absent ones are Envoy's defaults.
pub(crate) fn http1(
    proto: Option<&Http1ProtocolOptions>,
    field: &str,
    context: &mut CompileContext<'_>,
) -> Result<Http1Options, FieldError> {
    let default = Http1ProtocolOptions::default();
    let proto = proto.unwrap_or(&default);
    context.within(field, |context| {
        Ok(Http1Options {
            allow_absolute_url: proto.allow_absolute_url.is_none_or(|allowed| allowed.value),
            accept_http_10: proto.accept_http_10,
            enable_trailers: proto.enable_trailers,
            allow_chunked_length: proto.allow_chunked_length,
            header_case: header_case(proto, context)?,
            send_fully_qualified_url: proto.send_fully_qualified_url,
            allow_custom_methods: proto.allow_custom_methods,
        })
    })
}

fn header_case(proto: &Http1ProtocolOptions, context: &mut CompileContext<'_>) -> Result<HeaderCase, FieldError> {
    match proto.header_key_format.as_ref().and_then(|format| format.header_format.as_ref()) {
        None => Ok(HeaderCase::Lower),
        Some(HeaderFormat::ProperCaseWords(_)) => Ok(HeaderCase::ProperWords),
        Some(HeaderFormat::StatefulFormatter(extension)) => {
            context.within("header_key_format.stateful_formatter.typed_config", |context| {
                let config = extension.typed_config.clone().unwrap_or_default();
                let formatter: PreserveCaseFormatterConfig = any::unpack(&config, &context.path)?;
                let proper_words =
                    formatter.formatter_type_on_envoy_headers == FormatterTypeOnEnvoyHeaders::ProperCase as i32;
                Ok(HeaderCase::Preserve(Preserved { reason: formatter.forward_reason_phrase, proper_words }))
            })
        }
    }
}

/// HTTP/2 options; absent ones are Envoy's defaults.
pub(crate) fn http2(
    proto: Option<&Http2ProtocolOptions>,
    field: &str,
    context: &mut CompileContext<'_>,
) -> Result<Http2Options, FieldError> {
    let default = Http2Options::default();
    let Some(proto) = proto else {
        return Ok(default);
    };
    context.within(field, |context| {
        let keepalive = proto.connection_keepalive.as_ref();
        Ok(Http2Options {
            max_concurrent_streams: proto
                .max_concurrent_streams
                .map_or(default.max_concurrent_streams, |streams| streams.value),
            initial_stream_window_bytes: proto
                .initial_stream_window_size
                .map_or(default.initial_stream_window_bytes, |size| size.value),
            initial_connection_window_bytes: proto
                .initial_connection_window_size
                .map_or(default.initial_connection_window_bytes, |size| size.value),
            header_table_bytes: proto.hpack_table_size.map_or(default.header_table_bytes, |size| size.value),
            allow_connect: proto.allow_connect,
            keepalive: keepalive.map(|keepalive| self::keepalive(keepalive, context)).transpose()?,
            floods: floods(proto),
        })
    })
}

/// How many cheap frames a peer may send, of either side.
pub(crate) fn floods(proto: &Http2ProtocolOptions) -> FloodLimits {
    let default = FloodLimits::default();
    let or = |value: Option<UInt32Value>, default| value.map_or(default, |value| value.value);
    FloodLimits {
        empty_frames: or(proto.max_consecutive_inbound_frames_with_empty_payload, default.empty_frames),
        priority_frames_per_stream: or(
            proto.max_inbound_priority_frames_per_stream,
            default.priority_frames_per_stream,
        ),
        window_updates_per_data_frame: or(
            proto.max_inbound_window_update_frames_per_data_frame_sent,
            default.window_updates_per_data_frame,
        ),
        control_frames: or(proto.max_outbound_control_frames, default.control_frames),
        reset_burst: proto.stream_reset_burst.as_ref().map_or(default.reset_burst, |burst| burst.value),
        reset_rate: proto.stream_reset_rate.as_ref().map_or(default.reset_rate, |rate| rate.value),
    }
}

/// `interval_jitter`, 15 % by default.
pub(crate) fn jitter_percent(proto: &KeepaliveSettings) -> f64 {
    proto.interval_jitter.as_ref().map_or(15.0, |percent| percent.value)
}

fn keepalive(proto: &KeepaliveSettings, context: &CompileContext<'_>) -> Result<Keepalive, FieldError> {
    let idle = "connection_keepalive.connection_idle_interval";
    Ok(Keepalive {
        interval: duration(proto.interval.as_ref(), "connection_keepalive.interval", context)?,
        jitter_percent: jitter_percent(proto),
        timeout: duration(proto.timeout.as_ref(), "connection_keepalive.timeout", context)?.unwrap_or_default(),
        idle_interval: duration(proto.connection_idle_interval.as_ref(), idle, context)?,
    })
}
