//! The process' standard output and standard error, as whoever started it gave them. It must not know who writes to them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Makes standard output and standard error append where they are files.
///
/// A file that was opened twice has a place for each: what is written to one would be overwritten through the other
/// (`>f 2>f`, or a log whose path is /dev/stdout beside one to the standard output).
pub fn append() {
    for stream in [io::stdout().as_fd(), io::stderr().as_fd()] {
        // A stream that refuses is written as it is.
        let _ = append_to(stream);
    }
}

fn append_to(stream: BorrowedFd<'_>) -> io::Result<()> {
    if !std::fs::File::from(stream.try_clone_to_owned()?).metadata()?.is_file() {
        return Ok(());
    }
    // SAFETY: the descriptor is open for as long as it is borrowed; these commands take and give plain flags.
    #[expect(unsafe_code, reason = "the standard library cannot change how a file is open")]
    let result = unsafe {
        match libc::fcntl(stream.as_raw_fd(), libc::F_GETFL) {
            -1 => -1,
            flags => libc::fcntl(stream.as_raw_fd(), libc::F_SETFL, flags | libc::O_APPEND),
        }
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    #[test]
    fn two_places_in_a_file_do_not_overwrite_one_another() {
        let path = std::env::temp_dir().join(format!("tidegate-streams-{}", std::process::id()));
        let mut files = [fs::File::create(&path).unwrap(), fs::File::create(&path).unwrap()];
        for file in &files {
            append_to(file.as_fd()).unwrap();
        }
        for turn in 0..4 {
            writeln!(files[turn % 2], "{turn}").unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "0\n1\n2\n3\n");
        fs::remove_file(&path).unwrap();
    }
}
