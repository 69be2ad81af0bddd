//! Any text as a configuration, in both formats: a value or errors, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_xds::{Format, UnknownFields, decode, to_json};

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

fuzz_target!(|text: &[u8]| {
    for format in [Format::Yaml, Format::Json] {
        if let Ok(decoded) = decode(BOOTSTRAP, text, format, UnknownFields::Collect) {
            // What was read can be printed and read again.
            let printed = to_json(BOOTSTRAP, &decoded.bytes).to_string();
            assert!(decode(BOOTSTRAP, printed.as_bytes(), Format::Json, UnknownFields::Reject).is_ok());
        }
    }
});
