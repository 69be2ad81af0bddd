//! `/runtime` and `/runtime_modify`: the layers' values, and changes to the admin layer. It must not know what keys mean.

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::Call;
use super::query::Query;
use super::reply::Reply;
use crate::runtime::{Entry, ModifyError};

/// Every key with its value in each layer, and the one that acts.
pub(super) fn show(call: &Call<'_>) -> Reply {
    let merged = call.state.runtime().merged();
    let text = |entry: Option<&Entry>| entry.map(|entry| entry.text.clone()).unwrap_or_default();
    let mut entries = Map::new();
    for key in merged.keys() {
        let values: Vec<String> = merged.layers.iter().map(|(_, values)| text(values.get(key))).collect();
        let entry = json!({"layer_values": values, "final_value": text(merged.get(key))});
        entries.insert(key.to_owned(), entry);
    }
    let layers: Vec<&str> = merged.layers.iter().map(|(name, _)| &**name).collect();
    Reply::json(&json!({"entries": Value::Object(entries), "layers": layers}))
}

const USAGE: &str = "usage: /runtime_modify?key1=value1&key2=value2&keyN=valueN\n       or send the parameters as form values\n\
                     use an empty value to remove a previously added override";

pub(super) fn modify(call: &Call<'_>) -> Reply {
    let sent = if call.query.pairs().is_empty() { call.form.as_ref() } else { Some(&call.query) };
    let values = sent.map(Query::pairs).unwrap_or_default();
    if values.is_empty() {
        return Reply::bad_request(USAGE);
    }
    // Of several values for a key the first acts: set last, it stays.
    let values: Vec<_> = values.iter().rev().cloned().collect();
    match call.state.runtime().modify(&values) {
        Ok(()) => Reply::ok("OK\n"),
        Err(error @ (ModifyError::NoAdminLayer | ModifyError::Unreadable { .. })) => {
            Reply::error(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, get, post, post_form};

    #[test]
    fn values_are_shown_layer_by_layer() {
        let state = Fake::default();
        assert_eq!(
            get(&state, "/runtime").text(),
            "{\n \"entries\": {\n  \"a.b\": {\n   \"layer_values\": [\n    \"5\",\n    \"\"\n   ],\n   \"final_value\": \"5\"\n  }\n },\n \
             \"layers\": [\n  \"base\",\n  \"admin\"\n ]\n}\n"
        );
    }

    #[test]
    fn values_are_set_by_query_or_form() {
        let state = Fake::default();
        assert_eq!(post(&state, "/runtime_modify?a.b=7&c=x&c=y").text(), "OK\n");
        assert_eq!(post_form(&state, "/runtime_modify", "d=1.50").text(), "OK\n");
        let runtime = get(&state, "/runtime").parsed();
        assert_eq!(runtime["entries"]["a.b"]["layer_values"], serde_json::json!(["5", "7"]));
        assert_eq!(runtime["entries"]["c"]["final_value"], "x");
        assert_eq!(runtime["entries"]["d"]["final_value"], "1.50");
        post(&state, "/runtime_modify?a.b=");
        assert_eq!(get(&state, "/runtime").parsed()["entries"]["a.b"]["final_value"], "5");
    }

    #[test]
    fn mistakes_are_told() {
        let state = Fake::default();
        let reply = post(&state, "/runtime_modify");
        assert_eq!(reply.status, http::StatusCode::BAD_REQUEST);
        assert!(reply.text().starts_with("usage: /runtime_modify?key1=value1"));
        assert_eq!(post(&state, "/runtime_modify?a=%7B").status, http::StatusCode::SERVICE_UNAVAILABLE);
    }
}
