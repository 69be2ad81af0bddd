//! Names of the form `xdstp://authority/type/id?params` (xRFC TP1), and collections of them: everything whose id stands where
//! the collection has `*`, with the same parameters. It must not know what asks for them.
//!
//! See <https://github.com/cncf/xds/blob/main/proposals/TP1-xds-transport-next.md>.

use std::collections::BTreeMap;
use std::sync::Arc;

const SCHEME: &str = "xdstp://";

/// What every name of a collection begins with, and its parameters in order.
struct Parts<'a> {
    /// Authority, type and id.
    path: &'a str,
    parameters: BTreeMap<&'a str, &'a str>,
}

impl<'a> Parts<'a> {
    /// None: the name is of another form.
    fn of(name: &'a str) -> Option<Self> {
        let rest = name.strip_prefix(SCHEME)?;
        let (path, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let parameters = parameters.split('&').filter(|parameter| !parameter.is_empty());
        let parameters = parameters.map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")));
        Some(Self { path, parameters: parameters.collect() })
    }

    /// With `path` in place of its own; parameters are in order, so that two that say the same are the same.
    fn with(&self, path: &str) -> String {
        let mut name = format!("{SCHEME}{path}");
        for (index, (key, value)) in self.parameters.iter().enumerate() {
            name.push(if index == 0 { '?' } else { '&' });
            name.push_str(key);
            name.push('=');
            name.push_str(value);
        }
        name
    }
}

/// The collection that a `resources_locator` names, as it is asked for: of this message, in this node's context.
///
/// # Errors
/// What is no collection, in Envoy's words, or not one that can be asked for.
pub fn collection(locator: &str, message: &str, context: &[(String, String)]) -> Result<Arc<str>, String> {
    if locator.starts_with("http:") || locator.starts_with("file:") {
        return Err("not supported yet: collections but those of xdstp:".to_owned());
    }
    if locator.contains('#') {
        return Err("not supported yet: directives of xdstp names".to_owned());
    }
    let Some(mut parts) = Parts::of(locator) else {
        return Err(format!("{locator} does not have a xdstp:, http: or file: scheme"));
    };
    let Some((_, kind)) = parts.path.split_once('/') else {
        return Err("Resource type missing from /".to_owned());
    };
    if kind.split('/').next() != Some(message) {
        return Err(format!("xdstp:// type does not match {message} in {locator}"));
    }
    if !parts.path.ends_with("/*") {
        return Err("not supported yet: collections that do not end in /*".to_owned());
    }
    for (key, value) in context {
        parts.parameters.insert(key, value);
    }
    Ok(parts.with(parts.path).into())
}

/// Whether a name that is asked for is a collection.
pub(super) fn is_collection(name: &str) -> bool {
    Parts::of(name).is_some_and(|parts| parts.path.ends_with("/*"))
}

/// The collection that a resource is of, as it would be asked for; none where its name is of another form.
pub(super) fn collection_of(name: &str) -> Option<String> {
    let parts = Parts::of(name)?;
    let (before, _) = parts.path.rsplit_once('/')?;
    Some(parts.with(&format!("{before}/*")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTENER: &str = "envoy.config.listener.v3.Listener";

    fn asked(locator: &str) -> Result<Arc<str>, String> {
        collection(locator, LISTENER, &[])
    }

    #[test]
    fn parameters_come_in_order_and_say_who_asks() {
        let locator = "xdstp://auth/envoy.config.listener.v3.Listener/a/*?z=1&b=2";
        let wanted = "xdstp://auth/envoy.config.listener.v3.Listener/a/*?b=2&z=1";
        assert_eq!(asked(locator).as_deref(), Ok(wanted));
        let context = [("xds.node.id".to_owned(), "n".to_owned())];
        let wanted = "xdstp://auth/envoy.config.listener.v3.Listener/a/*?b=2&xds.node.id=n&z=1";
        assert_eq!(collection(locator, LISTENER, &context).as_deref(), Ok(wanted));
    }

    #[test]
    fn a_resource_is_of_one_collection() {
        let of = |name: &str| collection_of(name).unwrap_or_default();
        assert_eq!(of("xdstp://auth/T/a/one?z=1&b=2"), "xdstp://auth/T/a/*?b=2&z=1");
        assert_ne!(of("xdstp://auth/T/a/b/one"), of("xdstp://auth/T/a/one"));
        assert_eq!((of("one"), of("xdstp://auth")), (String::new(), String::new()));
        assert!(is_collection("xdstp://auth/T/*?a=b") && !is_collection("xdstp://auth/T/a*") && !is_collection("*"));
    }

    #[test]
    fn what_is_no_collection_is_refused() {
        for (locator, reason) in [
            ("nonsense", "nonsense does not have a xdstp:, http: or file: scheme"),
            ("xdstp://x", "Resource type missing from /"),
            ("xdstp://x/T/*", "xdstp:// type does not match envoy.config.listener.v3.Listener in xdstp://x/T/*"),
            ("file:///x", "not supported yet: collections but those of xdstp:"),
            ("xdstp://x/envoy.config.listener.v3.Listener/a", "not supported yet: collections that do not end in /*"),
            ("xdstp://x/envoy.config.listener.v3.Listener/*#a", "not supported yet: directives of xdstp names"),
        ] {
            assert_eq!(asked(locator).unwrap_err(), reason);
        }
    }
}
