//! Which pages of the program stay in memory: those that serving needs. A start runs much code once (the schema, decoders,
//! compilers of routes and filters), and every page of it would count as resident for as long as the process lives.
//! It must not know what ran.

use std::fs::{read_link, read_to_string};
use std::path::Path;

/// A mapping of a file that holds nothing but what stands in the file.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: usize,
    length: usize,
}

/// Lets go of the program's own pages: what is needed is mapped again from the page cache when it is next used, and what only
/// the start needed never is. For the end of a start; it takes a millisecond.
pub fn forget_start() {
    // Not on every system; then the pages stay.
    let (Ok(program), Ok(smaps)) = (read_link("/proc/self/exe"), read_to_string("/proc/self/smaps")) else { return };
    for mapping in unchanged(&smaps, &program) {
        release(&mapping);
    }
}

#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "the pages are the program's own, which is mapped as long as it runs, read-only and never written: reading them again gives the same"
)]
fn release(mapping: &Mapping) {
    // Whether it works or not, the contents are the same.
    let _ = unsafe { libc::madvise(mapping.start as *mut libc::c_void, mapping.length, libc::MADV_DONTNEED) };
}

#[cfg(not(target_os = "linux"))]
fn release(_: &Mapping) {}

/// The private read-only mappings of the program of which no page was ever written, from the text of `/proc/self/smaps`. What
/// was relocated and then protected was written.
fn unchanged(smaps: &str, program: &Path) -> Vec<Mapping> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("Anonymous:"), Some(kilobytes)) => {
                let read_only = candidate.take();
                found.extend(read_only.filter(|_| kilobytes == "0"));
            }
            (Some(name), _) if name.ends_with(':') => {}
            (Some(range), Some(access)) => {
                let own = line.find('/').is_some_and(|path| Path::new(&line[path..]) == program);
                candidate = mapping(range).filter(|_| own && matches!(access, "r-xp" | "r--p"));
            }
            _ => {}
        }
    }
    found
}

/// `start-end`, both hexadecimal.
fn mapping(range: &str) -> Option<Mapping> {
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some(Mapping { start, length: end.checked_sub(start)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_in_the_file_is_let_go() {
        let smaps = "\
1000-3000 r--p 00000000 fe:00 7 /usr/bin/x y
Size:                  8 kB
Anonymous:             0 kB
3000-5000 r-xp 00002000 fe:00 7   /usr/bin/x y
Anonymous:             0 kB
5000-6000 r--p 00004000 fe:00 7 /usr/bin/x y
Anonymous:             4 kB
5800-6000 r-xp 00000000 fe:00 8 /usr/lib/libc.so.6
Anonymous:             0 kB
6000-7000 rw-p 00005000 fe:00 7 /usr/bin/x y
Anonymous:             0 kB
7000-8000 r--p 00000000 00:00 0 [vvar]
Anonymous:             0 kB
8000-9000 r--p 00000000 00:00 0
Anonymous:             0 kB
nonsense
VmFlags: rd mr
";
        let found = unchanged(smaps, Path::new("/usr/bin/x y"));
        assert_eq!(found, [Mapping { start: 0x1000, length: 0x2000 }, Mapping { start: 0x3000, length: 0x2000 }]);
        assert!(unchanged("", Path::new("/x")).is_empty() && mapping("3-1").is_none() && mapping("x").is_none());
    }

    #[test]
    fn the_program_goes_on() {
        forget_start();
        assert_eq!(mapping("10-20"), Some(Mapping { start: 16, length: 16 }));
    }
}
