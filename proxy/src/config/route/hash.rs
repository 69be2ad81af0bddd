//! Hash policies. It must not know load balancers.

use tidegate_filters::context::CompileContext;
use tidegate_filters::http::HeaderKey;
use tidegate_filters::matching::Substitution;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::route::v3::route_action::HashPolicy as HashProto;
use tidegate_xds::pb::envoy::config::route::v3::route_action::hash_policy::{Cookie, PolicySpecifier};

use super::values;
use crate::route::{CookieSource, HashPolicy, HashSource};

/// Compiles `hash_policy`.
pub(in crate::config) fn policies(
    policies: &[HashProto],
    context: &mut CompileContext<'_>,
) -> Result<Vec<HashPolicy>, FieldError> {
    let compile = |(index, proto): (usize, &HashProto)| {
        context.within_item("hash_policy", index, |context| {
            let source = source(proto, context)?;
            Ok(source.map(|source| HashPolicy { source, terminal: proto.terminal }))
        })
    };
    policies.iter().enumerate().map(compile).filter_map(Result::transpose).collect()
}

fn source(proto: &HashProto, context: &mut CompileContext<'_>) -> Result<Option<HashSource>, FieldError> {
    Ok(Some(match &proto.policy_specifier {
        Some(PolicySpecifier::Header(header)) => {
            let rewrite = match &header.regex_rewrite {
                Some(rewrite) => {
                    Some(context.within("header.regex_rewrite", |context| Substitution::compile(rewrite, context))?)
                }
                None => None,
            };
            HashSource::Header { name: HeaderKey::new(&header.header_name), rewrite }
        }
        Some(PolicySpecifier::Cookie(cookie)) => HashSource::Cookie(self::cookie(cookie, context)?),
        Some(PolicySpecifier::ConnectionProperties(connection)) if connection.source_ip => HashSource::SourceIp,
        Some(PolicySpecifier::ConnectionProperties(_)) => return Ok(None),
        Some(PolicySpecifier::QueryParameter(parameter)) => {
            HashSource::QueryParameter(parameter.name.as_bytes().into())
        }
        Some(PolicySpecifier::FilterState(state)) => HashSource::FilterState(state.key.as_str().into()),
        None => return Err(context.error("a policy is required")),
    }))
}

/// A cookie with a lifetime is made where there is none; 0 makes one for the session.
fn cookie(proto: &Cookie, context: &CompileContext<'_>) -> Result<CookieSource, FieldError> {
    let ttl = values::duration(proto.ttl.as_ref(), "cookie.ttl", context)?;
    let new = ttl.map(|ttl| {
        let mut text = String::new();
        if ttl.as_secs() != 0 {
            text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
        }
        if !proto.path.is_empty() {
            text.push_str(&format!("; Path={}", proto.path));
        }
        for attribute in &proto.attributes {
            text.push_str(&format!("; {}", attribute.name));
            if !attribute.value.is_empty() {
                text.push_str(&format!("={}", attribute.value));
            }
        }
        text.push_str("; HttpOnly");
        text.into()
    });
    Ok(CookieSource { name: proto.name.as_str().into(), new })
}

#[cfg(test)]
mod tests {
    use crate::config::route::testing::{chosen, get, routes, with_input};
    use crate::route::hash;

    /// Reference §4, row 41.
    #[test]
    fn a_cookie_is_made_with_its_attributes() {
        let cookie = |cookie: &str| {
            let list = format!(
                "[{{match: {{prefix: /}}, route: {{cluster: c, hash_policy: [{{cookie: {{name: s, {cookie}}}}}]}}}}]"
            );
            let (table, head) = (routes(&list), get("/", &[]));
            let route = chosen(&table, &head);
            let made = with_input(&head, |input| hash(&route.forward().unwrap().hash, input)).cookies;
            made.first().map(|cookie| cookie.to_str().unwrap().split_once("\"; ").unwrap().1.to_owned())
        };
        assert_eq!(cookie("ttl: 60s, path: /p").as_deref(), Some("Max-Age=60; Path=/p; HttpOnly"));
        assert_eq!(
            cookie("ttl: 0s, attributes: [{name: Secure}, {name: SameSite, value: Lax}]").as_deref(),
            Some("Secure; SameSite=Lax; HttpOnly")
        );
        assert_eq!(cookie("path: /p"), None);
    }
}
