//! The allocator of the process (mimalloc), and when it gives memory back.
//! It must not know who allocates.
//!
//! Transparent huge pages are off (`no_thp`): with them a proxy that holds 3 MB of data occupies 10 MB or more, because the
//! kernel backs whole 2 MiB ranges of which a few pages are used.

/// glibc's allocator costs up to 40 % more CPU with large bodies.
pub type Allocator = mimalloc::MiMalloc;

/// Gives the memory that this thread no longer uses back to the system. For the control thread, after a configuration was
/// read: decoding takes several times what the compiled configuration keeps. It may take milliseconds.
#[expect(unsafe_code, reason = "the allocator's own call; it takes no pointers and may be made at any time")]
pub fn give_back() {
    unsafe { libmimalloc_sys::mi_collect(true) }
}
