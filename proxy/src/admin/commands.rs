//! The endpoints that make the process do something. It must not know how it does it.

use super::Call;
use super::reply::Reply;
use super::state::DrainListeners;

pub(super) fn drain_listeners(call: &Call<'_>) -> Reply {
    call.state.drain_listeners(DrainListeners {
        graceful: call.query.has("graceful"),
        skip_exit: call.query.has("skip_exit"),
        inbound_only: call.query.has("inboundonly"),
    });
    done()
}

pub(super) fn fail_health_checks(call: &Call<'_>) -> Reply {
    call.state.set_health_check_failing(true);
    done()
}

pub(super) fn pass_health_checks(call: &Call<'_>) -> Reply {
    call.state.set_health_check_failing(false);
    done()
}

pub(super) fn quit(call: &Call<'_>) -> Reply {
    call.state.quit();
    done()
}

pub(super) fn reopen_logs(call: &Call<'_>) -> Reply {
    call.state.reopen_logs();
    done()
}

pub(super) fn reset_counters(call: &Call<'_>) -> Reply {
    call.state.stats().reset_counters();
    call.state.stats().lookups().clear();
    done()
}

fn done() -> Reply {
    Reply::ok("OK\n")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, post};

    #[test]
    fn what_is_asked_is_handed_on() {
        let state = Fake::default();
        for path in [
            "/drain_listeners",
            "/drain_listeners?graceful&skip_exit",
            "/drain_listeners?inboundonly=1",
            "/healthcheck/fail",
            "/healthcheck/ok",
            "/reopen_logs",
        ] {
            assert_eq!(post(&state, path).text(), "OK\n");
        }
        assert_eq!(
            *state.asked.lock(),
            [
                "drain graceful=false skip_exit=false inbound_only=false",
                "drain graceful=true skip_exit=true inbound_only=false",
                "drain graceful=false skip_exit=false inbound_only=true",
                "failing true",
                "failing false",
                "reopen logs",
            ]
        );
    }

    #[test]
    fn counters_are_reset() {
        let state = Fake::default();
        state.stats.root().counter("a").inc();
        assert_eq!(post(&state, "/reset_counters").text(), "OK\n");
        assert_eq!(state.stats.root().counter("a").value(), 0);
    }
}
