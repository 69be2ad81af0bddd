//! Numbers as protobuf's JSON reads them. It must not know fields.

/// An integer between bounds: plain digits, or any number without a fraction (`1e3`, `5.0`).
pub(super) fn integer(text: &str, lowest: i128, highest: i128) -> Result<i128, String> {
    if text.contains(|c: char| c.is_ascii_whitespace()) {
        return Err(format!("{text:?} is not a number"));
    }
    let value = match text.parse::<i128>() {
        Ok(value) => value,
        Err(_) => from_float(text)?,
    };
    if (lowest..=highest).contains(&value) {
        Ok(value)
    } else {
        Err(format!("{text} is out of range, which is {lowest} to {highest}"))
    }
}

fn from_float(text: &str) -> Result<i128, String> {
    /// Beyond this a double does not hold every integer.
    const LARGEST: f64 = 18_014_398_509_481_984.0;
    let value = float(text).filter(|value| value.is_finite()).ok_or_else(|| format!("{text:?} is not a number"))?;
    if value.fract() != 0.0 {
        return Err(format!("{text} is not an integer"));
    }
    if value.abs() > LARGEST {
        return Err(format!("{text} is out of range"));
    }
    Ok(value as i128)
}

/// A floating-point number as C reads it, with JSON's names for what is not finite.
pub(super) fn float(text: &str) -> Option<f64> {
    let text = text.trim_matches(|c: char| c.is_ascii_whitespace());
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    match unsigned.strip_prefix("0x").or_else(|| unsigned.strip_prefix("0X")) {
        Some(digits) => hexadecimal(digits).map(|value| sign * value),
        None if unsigned.starts_with(['+', '-']) => None,
        None => unsigned.parse::<f64>().ok().map(|value| sign * value),
    }
}

/// C's `0x1.8p3`, without its `0x`.
fn hexadecimal(digits: &str) -> Option<f64> {
    let (mantissa, exponent) = digits.split_once(['p', 'P']).unwrap_or((digits, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut value = 0.0;
    for c in whole.chars().chain(fraction.chars()) {
        value = value * 16.0 + f64::from(c.to_digit(16)?);
    }
    let shift = i32::try_from(fraction.len()).ok()?.checked_mul(4)?;
    Some(value * f64::from(2).powi(exponent.parse::<i32>().ok()?.checked_sub(shift)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_may_be_written_as_floats() {
        assert_eq!(integer("1e3", 0, 5000), Ok(1000));
        assert_eq!(integer("5.0", 0, 5000), Ok(5));
        assert_eq!(integer("08", 0, 5000), Ok(8));
        assert_eq!(integer("-1", -1, 1), Ok(-1));
        assert_eq!(integer("0x10", 0, 5000), Ok(16));
        assert_eq!(integer("0x1.8p3", 0, 5000), Ok(12));
        for bad in ["1.5", "-1", "1e9", "x", "", " 1", "1_000", "inf", "nan", "0x", "0x1p", "+-1"] {
            assert!(integer(bad, 0, 5000).is_err(), "{bad:?}");
        }
    }
}
