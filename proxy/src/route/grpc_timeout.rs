//! `grpc-timeout`, read and written as Envoy does. It must not know what the timeout bounds.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The specification allows 8 digits.
const MAX_VALUE: u64 = 99_999_999;

/// The header's value in whole milliseconds, rounded up; `None` when it is absent or malformed.
pub fn read(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (value, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = value.trim().parse().ok().filter(|value| *value <= MAX_VALUE)?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_millis(value.div_ceil(1_000)),
        "n" => Duration::from_millis(value.div_ceil(1_000_000)),
        _ => return None,
    })
}

/// Sets the header, in the smallest unit from milliseconds on that takes 8 digits.
pub fn write(headers: &mut HeaderMap, timeout: Duration) {
    let mut value = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let mut unit = 'm';
    for (next, factor) in [('S', 1000), ('M', 60), ('H', 60)] {
        if value > MAX_VALUE {
            (value, unit) = (value / factor, next);
        }
    }
    if let Ok(value) = HeaderValue::from_str(&format!("{}{unit}", value.min(MAX_VALUE))) {
        headers.insert(GRPC_TIMEOUT, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(GRPC_TIMEOUT, HeaderValue::from_static(value))])
    }

    #[test]
    fn units_are_read_in_milliseconds_rounded_up() {
        for (text, millis) in
            [("2H", 7_200_000), ("3M", 180_000), ("1S", 1000), ("7m", 7), ("1001u", 2), ("1n", 1), ("0m", 0)]
        {
            assert_eq!(read(&headers(text)), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "m", "-1S", "xS", "1x", "100000000S"] {
            assert_eq!(read(&headers(text)), None, "{text}");
        }
        assert_eq!(read(&HeaderMap::new()), None);
    }

    #[test]
    fn the_unit_grows_with_the_value() {
        for (timeout, text) in [
            (Duration::from_millis(99_999_999), "99999999m"),
            (Duration::from_millis(100_000_000), "100000S"),
            (Duration::from_secs(100_000_000), "1666666M"),
            (Duration::MAX, "99999999H"),
        ] {
            let mut headers = HeaderMap::new();
            write(&mut headers, timeout);
            assert_eq!(headers[GRPC_TIMEOUT], text);
        }
    }
}
