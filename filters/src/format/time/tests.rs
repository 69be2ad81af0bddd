//! Dates as Envoy 1.40 prints them.

use std::time::Duration;

use super::*;

fn at(seconds: u64, nanos: u32) -> SystemTime {
    UNIX_EPOCH + Duration::new(seconds, nanos)
}

fn formatted(format: &str, time: SystemTime) -> String {
    let mut out = Vec::new();
    TimeFormat::compile(format).unwrap().write(time, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn the_default_is_milliseconds_in_utc() {
    let time = at(1_795_490_491, 685_550_000);
    for _ in 0..2 {
        assert_eq!(formatted("", time), "2026-11-24T03:21:31.685Z");
    }
    assert_eq!(formatted("", at(0, 0)), "1970-01-01T00:00:00.000Z");
}

/// Measured on Envoy 1.40.
#[test]
fn every_specifier_prints_what_envoy_prints() {
    let format = "%3f|%E3S|%E*S|%Ez|%Z|%j|%a|%A|%b|%B|%e|%p|%I|%y|%C|%D|%F|%T|%R|%c|%x|%X|%u|%w|%U|%W|%V|%G|%g|%h|%k|\
                  %l|%r|%t|%%|%Q|%E4Y";
    let expected = "685|31.685|31.68555|+00:00|UTC|328|Tue|Tuesday|Nov|November|24|AM|03|26|20|11/24/26|2026-11-24|\
                    03:21:31|03:21|Tue Nov 24 03:21:31 2026|11/24/26|03:21:31|2|2|47|47|48|2026|26|Nov| 3| 3|\
                    03:21:31 AM|\t|%|%Q|2026";
    assert_eq!(formatted(format, at(1_795_490_491, 685_550_000)), expected);
    let time = at(1_795_490_491, 685_550_000);
    assert_eq!(formatted("%f %1f %9f", time), "685550000 6 685550000");
    assert_eq!(formatted("%s.%3f", time), "1795490491.685");
    assert_eq!(formatted("%Y/%m/%dT%H:%M:%S%z", time), "2026/11/24T03:21:31+0000");
    assert_eq!(formatted("%E15S %E*f %OS", time), "31.685550000000000 68555 31");
    assert_eq!(formatted("%-H %_m %^b %", at(0, 0)), "0  1 JAN %");
}

#[test]
fn weeks_at_the_turn_of_a_year() {
    for (seconds, expected) in [
        (1_104_537_600, "2004-53 00 00"), // 2005-01-01, a Saturday
        (1_199_059_200, "2008-01 52 53"), // 2007-12-31, a Monday
        (1_230_768_000, "2009-01 00 00"), // 2009-01-01, a Thursday
        (1_609_459_199, "2020-53 52 52"), // 2020-12-31
    ] {
        assert_eq!(formatted("%G-%V %U %W", at(seconds, 0)), expected, "{seconds}");
    }
    assert_eq!(formatted("%F %j", at(1_709_164_800, 0)), "2024-02-29 060");
}

#[test]
fn a_newline_is_refused() {
    for format in ["%n", "a%n", "%-5n", "%En"] {
        assert_eq!(TimeFormat::compile(format), None, "{format}");
    }
}

/// Measured on Envoy 1.40 in Asia/Kolkata.
#[test]
fn a_local_time_says_how_far_it_is_from_utc() {
    let written = |zone: Zone, east_seconds| {
        let mut out = Vec::new();
        zone.write(LocalTime { east_seconds, name: "IST" }, &mut out);
        String::from_utf8(out).unwrap()
    };
    assert_eq!([Zone::Plain, Zone::Colons].map(|zone| written(zone, 19_800)), ["+0530", "+05:30"]);
    assert_eq!([Zone::Plain, Zone::Seconds].map(|zone| written(zone, -12_600)), ["-0330", "-03:30:00"]);
    assert_eq!(written(Zone::Name, 19_800), "IST");
    let local = TimeFormat::compile_local("").unwrap();
    let mut out = Vec::new();
    local.write(at(1_795_490_491, 685_550_000), &mut out);
    // Wherever this runs: date, time, milliseconds, distance.
    assert_eq!(out.len(), "2026-11-24T03:21:31.685+0000".len());
    assert!(TimeFormat::compile_local("%n").is_none());
    let mut out = Vec::new();
    TimeFormat::compile_local("%Z").unwrap().write(at(1_795_490_491, 0), &mut out);
    assert_eq!(String::from_utf8(out).unwrap(), zone::LocalTime::at(1_795_490_491).name);
}
