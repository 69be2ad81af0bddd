//! Any bytes as a message: checked, audited and printed without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_xds::{Coverage, CoverageSource, audit, schema, to_json, validate};

/// Lets the audit go everywhere.
struct Everything;

impl CoverageSource for Everything {
    fn of(&self, _: &str) -> Option<&Coverage> {
        static NOTHING: Coverage = Coverage { message: "", enforced: &["name", "value"], listed: &[] };
        Some(&NOTHING)
    }
}

fuzz_target!(|input: (u16, &[u8])| {
    let (at, bytes) = input;
    let messages = schema::messages();
    let name = messages[usize::from(at) % messages.len()].name();
    let _ = validate(name, bytes);
    let _ = audit(name, bytes, &Everything);
    let _ = to_json(name, bytes);
});
