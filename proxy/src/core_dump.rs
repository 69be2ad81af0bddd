//! Memory dumps of a process that crashes (`--enable-core-dump`). It must not know why it would.

use std::io;

/// Lets the system keep one: the process may be dumped, up to the size that its limit can be raised to.
///
/// # Errors
/// The system's.
#[expect(unsafe_code, reason = "the standard library knows neither call")]
pub fn enable() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain numbers, and one structure that lives through the calls.
    let done = unsafe {
        #[cfg(target_os = "linux")]
        let allowed = libc::prctl(libc::PR_SET_DUMPABLE, 1) == 0;
        #[cfg(not(target_os = "linux"))]
        let allowed = true;
        allowed && libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) == 0
        }
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}
