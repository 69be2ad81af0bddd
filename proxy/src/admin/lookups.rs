//! `/stats/recentlookups`: the stats that were looked up by name lately. It must not know who looked.

use super::Call;
use super::reply::Reply;

pub(super) fn show(call: &Call<'_>) -> Reply {
    let lookups = call.state.stats().lookups();
    let mut text = match lookups.recent() {
        None => "Lookup tracking is not enabled. Use /stats/recentlookups/enable to enable.\n".to_owned(),
        Some(recent) => {
            let lines = recent.iter().map(|(name, count)| format!("{count:8} {name}\n"));
            std::iter::once("   Count Lookup\n".to_owned()).chain(lines).collect()
        }
    };
    text.push_str(&format!("\ntotal: {}\n", lookups.total()));
    Reply::ok(text)
}

pub(super) fn clear(call: &Call<'_>) -> Reply {
    call.state.stats().lookups().clear();
    Reply::ok("OK\n")
}

pub(super) fn disable(call: &Call<'_>) -> Reply {
    call.state.stats().lookups().track(false);
    Reply::ok("OK\n")
}

pub(super) fn enable(call: &Call<'_>) -> Reply {
    call.state.stats().lookups().track(true);
    Reply::ok("OK\n")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, get, post};

    #[test]
    fn lookups_are_listed_while_they_are_tracked() {
        let state = Fake::default();
        state.stats.root().counter("a");
        let off = "Lookup tracking is not enabled. Use /stats/recentlookups/enable to enable.\n";
        assert_eq!(get(&state, "/stats/recentlookups").text(), format!("{off}\ntotal: 1\n"));
        assert_eq!(get(&state, "/stats/recentlookups/enable").status, http::StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(post(&state, "/stats/recentlookups/enable").text(), "OK\n");
        state.stats.root().counter("b");
        assert_eq!(get(&state, "/stats/recentlookups").text(), "   Count Lookup\n       1 b\n\ntotal: 2\n");
        assert_eq!(post(&state, "/stats/recentlookups/clear").text(), "OK\n");
        assert_eq!(get(&state, "/stats/recentlookups").text(), "   Count Lookup\n\ntotal: 0\n");
        assert_eq!(post(&state, "/stats/recentlookups/disable").text(), "OK\n");
        assert_eq!(get(&state, "/stats/recentlookups").text(), format!("{off}\ntotal: 0\n"));
    }
}
