//! The machine's time zone, as Envoy's library finds it: the file that `TZ` names, else `/etc/localtime`, else UTC.
//! It must not know formats.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use tz::TimeZone;

/// Where zones' files are when `TZDIR` does not say.
const ZONES: &str = "/usr/share/zoneinfo";

/// What a clock in the zone shows, and what the zone is called then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LocalTime {
    pub(super) east_seconds: i32,
    pub(super) name: &'static str,
}

impl LocalTime {
    pub(super) const UTC: Self = Self { east_seconds: 0, name: "UTC" };

    /// In the machine's time zone at a moment, in seconds since the epoch. The zone is read once.
    pub(super) fn at(seconds: i64) -> Self {
        static LOCAL: LazyLock<Option<TimeZone>> = LazyLock::new(|| {
            let name = std::env::var_os("TZ");
            read(&path(name.as_deref(), std::env::var_os("TZDIR").as_deref()))
        });
        Self::of(LOCAL.as_ref(), seconds)
    }

    fn of(zone: Option<&'static TimeZone>, seconds: i64) -> Self {
        let Some(Ok(now)) = zone.map(|zone| zone.find_local_time_type(seconds)) else { return Self::UTC };
        Self { east_seconds: now.ut_offset(), name: now.time_zone_designation() }
    }
}

/// The file of a zone. A rule of POSIX (`EST5EDT,M3...`) names none, as in Envoy.
fn path(name: Option<&OsStr>, zones: Option<&OsStr>) -> PathBuf {
    let Some(name) = name else { return "/etc/localtime".into() };
    let bytes = name.as_encoded_bytes();
    let name = bytes.strip_prefix(b":").map_or_else(|| name.to_string_lossy(), String::from_utf8_lossy);
    if name == "localtime" {
        return "/etc/localtime".into();
    }
    Path::new(zones.unwrap_or(OsStr::new(ZONES))).join(&*name)
}

/// `None` is UTC: there is no such file, or it is none of a zone.
fn read(path: &Path) -> Option<TimeZone> {
    TimeZone::from_tz_data(&std::fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_is_a_file_by_name_or_path() {
        let path = |name: Option<&str>| path(name.map(OsStr::new), Some(OsStr::new("/z")));
        for (name, expected) in [
            (None, "/etc/localtime"),
            (Some("localtime"), "/etc/localtime"),
            (Some("Asia/Dubai"), "/z/Asia/Dubai"),
            (Some(":Asia/Dubai"), "/z/Asia/Dubai"),
            (Some("/a/b"), "/a/b"),
            (Some(":/a/b"), "/a/b"),
            (Some("<+03>-3"), "/z/<+03>-3"),
        ] {
            assert_eq!(path(name), Path::new(expected), "{name:?}");
        }
    }

    /// A zone whose clocks go from CET to CEST at 100, and back at 200.
    fn zone() -> &'static TimeZone {
        let mut file = Vec::new();
        for version in [b'2', b'2'] {
            file.extend_from_slice(b"TZif");
            file.push(version);
            file.extend_from_slice(&[0; 15]);
            for count in [0u32, 0, 0, 2, 2, 9] {
                file.extend_from_slice(&count.to_be_bytes());
            }
            for at in [100i64, 200] {
                // The first part has the same in fewer bits.
                let bytes = at.to_be_bytes();
                file.extend_from_slice(if file.len() < 100 { &bytes[4..] } else { &bytes });
            }
            file.extend_from_slice(&[1, 0]);
            for (offset, summer, name) in [(3600i32, 0, 0), (7200, 1, 4)] {
                file.extend_from_slice(&offset.to_be_bytes());
                file.extend_from_slice(&[summer, name]);
            }
            file.extend_from_slice(b"CET\0CEST\0");
        }
        file.extend_from_slice(b"\n\n");
        Box::leak(Box::new(TimeZone::from_tz_data(&file).unwrap()))
    }

    #[test]
    fn a_zone_has_a_name_and_a_distance_for_each_moment() {
        let zone = zone();
        for (seconds, east_seconds, name) in [(0, 3600, "CET"), (100, 7200, "CEST"), (150, 7200, "CEST")] {
            assert_eq!(LocalTime::of(Some(zone), seconds), LocalTime { east_seconds, name }, "{seconds}");
        }
        assert_eq!(LocalTime::of(None, 0), LocalTime::UTC);
        assert!(read(Path::new("/no/such/zone")).is_none());
        assert!(read(Path::new("/dev/null")).is_none());
    }
}
