//! Bounds of numbers, durations and counts. It must not know where a number comes from.

use std::fmt::Display;

use crate::schema::rules::Limits;

/// Checks a number; the error says what it must be.
pub(super) fn check<T: PartialOrd + Copy + Default>(
    limits: &Limits<T>,
    value: T,
    show: impl Fn(T) -> String,
) -> Result<(), String> {
    if limits.ignore_empty && value == T::default() {
        return Ok(());
    }
    let shown = show(value);
    if let Some(equal) = limits.equal.filter(|equal| *equal != value) {
        return Err(format!("{shown} must be {}", show(equal)));
    }
    let list = |values: &[T]| values.iter().map(|value| show(*value)).collect::<Vec<_>>().join(", ");
    if !limits.any_of.is_empty() && !limits.any_of.contains(&value) {
        return Err(format!("{shown} must be one of {}", list(limits.any_of)));
    }
    if limits.none_of.contains(&value) {
        return Err(format!("{shown} must not be one of {}", list(limits.none_of)));
    }
    let lower =
        limits.lower.map(|(bound, inclusive)| (bound, if inclusive { "at least" } else { "more than" }, inclusive));
    let upper =
        limits.upper.map(|(bound, inclusive)| (bound, if inclusive { "at most" } else { "less than" }, inclusive));
    // A value that is no number fulfils neither bound but breaks none either, as in C++.
    let below = lower.is_some_and(|(bound, _, inclusive)| value < bound || !inclusive && value == bound);
    let above = upper.is_some_and(|(bound, _, inclusive)| value > bound || !inclusive && value == bound);
    match (lower, upper) {
        // Bounds in reverse order exclude what is between them.
        (Some((low, _, _)), Some((high, _, _))) if low > high => {
            if below && above {
                Err(format!("{shown} must not be between {} and {}", show(high), show(low)))
            } else {
                Ok(())
            }
        }
        (Some((bound, words, _)), _) if below => Err(format!("{shown} must be {words} {}", show(bound))),
        (_, Some((bound, words, _))) if above => Err(format!("{shown} must be {words} {}", show(bound))),
        _ => Ok(()),
    }
}

/// Checks how many there are of something.
pub(super) fn check_count(count: usize, min: u64, max: u64, what: &str) -> Result<(), String> {
    let plural = |bound: u64| match (what, bound) {
        (_, 1) => what.to_owned(),
        ("entry", _) => "entries".to_owned(),
        _ => format!("{what}s"),
    };
    let count = count as u64;
    if min == max && count != min {
        return Err(format!("must have exactly {min} {}, has {count}", plural(min)));
    }
    if count < min {
        return Err(if count == 0 && min == 1 {
            "must not be empty".to_owned()
        } else {
            format!("must have at least {min} {}, has {count}", plural(min))
        });
    }
    if count > max {
        return Err(format!("must have at most {max} {}, has {count}", plural(max)));
    }
    Ok(())
}

/// Nanoseconds as protobuf's JSON writes a duration.
pub(super) fn show_duration(nanos: i128) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let (seconds, rest) = (nanos.unsigned_abs() / 1_000_000_000, nanos.unsigned_abs() % 1_000_000_000);
    let fraction = format!("{rest:09}");
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    show(format_args!("{sign}{seconds}{point}{fraction}s"))
}

fn show(value: impl Display) -> String {
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Limits<i128> =
        Limits { equal: None, lower: None, upper: None, any_of: &[], none_of: &[], ignore_empty: false };

    fn ok(limits: &Limits<i128>, value: i128) -> bool {
        check(limits, value, |value| value.to_string()).is_ok()
    }

    #[test]
    fn bounds_include_or_exclude_their_ends() {
        let limits = Limits { lower: Some((1, true)), upper: Some((5, false)), ..OPEN };
        assert_eq!([0, 1, 4, 5].map(|value| ok(&limits, value)), [false, true, true, false]);
        let outside = Limits { lower: Some((5, true)), upper: Some((1, true)), ..OPEN };
        assert_eq!([0, 1, 3, 5].map(|value| ok(&outside, value)), [true, true, false, true]);
    }

    #[test]
    fn lists_constants_and_empty_values() {
        assert!(!ok(&Limits { any_of: &[1, 2], ..OPEN }, 3));
        assert!(!ok(&Limits { none_of: &[3], ..OPEN }, 3));
        assert!(!ok(&Limits { equal: Some(1), ..OPEN }, 0));
        assert!(ok(&Limits { equal: Some(1), ignore_empty: true, ..OPEN }, 0));
    }

    #[test]
    fn durations_are_shown_in_seconds() {
        assert_eq!(show_duration(250_000_000), "0.25s");
        assert_eq!(show_duration(-1_000_000_000), "-1s");
        assert_eq!(show_duration(0), "0s");
    }

    #[test]
    fn counts_say_what_is_missing() {
        assert_eq!(check_count(0, 1, u64::MAX, "item").unwrap_err(), "must not be empty");
        assert_eq!(check_count(3, 0, 2, "entry").unwrap_err(), "must have at most 2 entries, has 3");
        assert_eq!(check_count(3, 4, 4, "byte").unwrap_err(), "must have exactly 4 bytes, has 3");
    }
}
