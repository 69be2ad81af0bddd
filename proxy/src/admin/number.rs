//! Numbers as the C++ libraries print them that Envoy uses; what reads its output may compare text.
//! It must not know what they count.

/// printf's `%.{precision}g`: the shorter of fixed and scientific, without zeros at the end.
pub(super) fn general(value: f64, precision: usize) -> String {
    if !value.is_finite() {
        return not_finite(value);
    }
    let scientific = format!("{value:.*e}", precision.max(1) - 1);
    let (digits, exponent) = split(&scientific);
    let trimmed = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
    if exponent < -4 || exponent >= precision as i32 {
        return with_exponent(trimmed, exponent);
    }
    let decimals = (precision as i32 - 1 - exponent).max(0) as usize;
    let fixed = format!("{value:.decimals$}");
    if fixed.contains('.') { fixed.trim_end_matches('0').trim_end_matches('.').to_owned() } else { fixed }
}

/// As few digits as name the value, in fixed notation unless it would be long (fmt's `{}`).
pub(super) fn display(value: f64) -> String {
    if !value.is_finite() {
        return not_finite(value);
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = split(&scientific);
    if (-4..16).contains(&exponent) { value.to_string() } else { with_exponent(digits, exponent) }
}

/// As few characters as name the value (`std::to_chars`); `null` for what JSON has no number for.
pub(super) fn json(value: f64) -> String {
    if !value.is_finite() {
        return "null".to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = split(&scientific);
    let (fixed, scientific) = (value.to_string(), with_exponent(digits, exponent));
    if scientific.len() < fixed.len() { scientific } else { fixed }
}

fn split(scientific: &str) -> (&str, i32) {
    let (digits, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    (digits, exponent.parse().unwrap_or(0))
}

fn with_exponent(digits: &str, exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn not_finite(value: f64) -> String {
    let name = if value.is_nan() { "nan" } else { "inf" };
    if value.is_sign_negative() && !value.is_nan() { format!("-{name}") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn general_is_printf_g() {
        let cases =
            [(0.5, "0.5"), (300_000.0, "300000"), (1.8e6, "1.8e+06"), (100.0, "100"), (99.9, "99.9"), (0.0, "0")];
        for (value, text) in cases {
            assert_eq!(general(value, 6), text);
        }
        assert_eq!(general(-1.0, 6), "-1");
        assert_eq!(general(3_600_000.0, 32), "3600000");
        assert_eq!(general(26.0 + 26.0 / 53.0, 32), "26.490566037735849391765441396274");
        assert_eq!(general(f64::NAN, 6), "nan");
        assert_eq!(general(0.00001, 6), "1e-05");
    }

    #[test]
    fn display_is_the_shortest_that_reads_the_same() {
        for (value, text) in
            [(26.5, "26.5"), (0.0, "0"), (1.0 + 1.0 / 129.0 * 0.1, "1.0007751937984497"), (1e16, "1e+16")]
        {
            assert_eq!(display(value), text);
        }
        assert_eq!(display(f64::NAN), "nan");
    }

    #[test]
    fn json_takes_the_fewest_characters() {
        for (value, text) in
            [(0.5, "0.5"), (60_000.0, "60000"), (300_000.0, "3e+05"), (1.8e6, "1800000"), (f64::NAN, "null")]
        {
            assert_eq!(json(value), text);
        }
    }
}
