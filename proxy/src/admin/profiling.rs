//! The profilers that Envoy can be built with, as a build without them answers. It must not know what could be profiled.

use http::StatusCode;

use super::Call;
use super::reply::Reply;

/// There is none to start; that it is stopped is true.
pub(super) fn cpu(call: &Call<'_>) -> Reply {
    match call.query.pairs() {
        [(name, value)] if name == "enable" && value == "y" => {
            Reply::error(StatusCode::INTERNAL_SERVER_ERROR, "failure to start the profiler")
        }
        [(name, value)] if name == "enable" && value == "n" => Reply::ok("OK\n"),
        _ => Reply::bad_request("?enable=<y|n>\n"),
    }
}

/// Profiles and dumps of the heap.
pub(super) fn heap(_: &Call<'_>) -> Reply {
    Reply::error(StatusCode::NOT_IMPLEMENTED, "The current build does not support heap profiler")
}

/// The allocator is another one.
pub(super) fn tcmalloc(_: &Call<'_>) -> Reply {
    Reply::error(StatusCode::NOT_IMPLEMENTED, "The current build does not use TCMalloc")
}

/// No mutex is traced, as in Envoy without its flag.
pub(super) fn contention(_: &Call<'_>) -> Reply {
    Reply::ok("Mutex contention tracing is not enabled. To enable, run Envoy with flag --enable-mutex-tracing.")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, get, post};

    #[test]
    fn the_profiler_does_not_start() {
        let state = Fake::default();
        for (path, status, text) in [
            ("/cpuprofiler", 400, "?enable=<y|n>\n"),
            ("/cpuprofiler?enable=z", 400, "?enable=<y|n>\n"),
            ("/cpuprofiler?enable=y", 500, "failure to start the profiler"),
            ("/cpuprofiler?enable=n", 200, "OK\n"),
        ] {
            let reply = post(&state, path);
            assert_eq!((reply.status.as_u16(), reply.text()), (status, text), "{path}");
        }
        assert_eq!(get(&state, "/cpuprofiler").status.as_u16(), 405);
        assert_eq!(get(&state, "/heap_dump").status.as_u16(), 501);
        assert!(get(&state, "/contention").text().starts_with("Mutex contention tracing is not enabled."));
    }
}
