//! `/listeners`: where listeners listen, as lines or as `envoy.admin.v3.Listeners`. It must not know how listeners work.

use serde_json::Value;

use super::Call;
use super::clusters::address;
use super::json::Object;
use super::reply::Reply;
use super::state::ListenerStatus;

pub(super) fn show(call: &Call<'_>) -> Reply {
    let listeners = call.state.listeners();
    if call.query.get("format") == Some("json") {
        let statuses: Vec<Value> = listeners.iter().map(to_json).collect();
        return Reply::json(&Object::default().set("listener_statuses", statuses).into());
    }
    let lines = |listener: &ListenerStatus| {
        let addresses = std::iter::once(&listener.address).chain(&listener.more_addresses);
        addresses.map(|address| format!("{}::{address}\n", listener.name)).collect::<String>()
    };
    Reply::ok(listeners.iter().map(lines).collect::<String>())
}

fn to_json(listener: &ListenerStatus) -> Value {
    let more: Vec<Value> = listener.more_addresses.iter().map(address).collect();
    Object::default()
        .set("name", &*listener.name)
        .set("local_address", address(&listener.address))
        .set("additional_local_addresses", more)
        .into()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, get};

    #[test]
    fn listeners_are_told_with_all_their_addresses() {
        let state = Fake::default();
        assert_eq!(get(&state, "/listeners").text(), "l1::127.0.0.1:80\nl1::[::1]:80\nl2::@admin\n");
        let json = get(&state, "/listeners?format=json").parsed();
        assert_eq!(json["listener_statuses"][1]["local_address"], serde_json::json!({"pipe": {"path": "@admin"}}));
        let more = &json["listener_statuses"][0]["additional_local_addresses"][0];
        assert_eq!(more["socket_address"]["address"], "::1");
    }
}
