//! The types of resources that are served, and what the protocol says of each: where its name stands, which order keeps
//! references whole, what it means to name none and to be absent. It must not know any other field.

use tidegate_xds::any;

/// A type of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceType(u8);

struct Row {
    message: &'static str,
    /// The field that holds the name.
    name: &'static str,
    /// A first request that names nothing asks for everything.
    wildcard: bool,
    /// What a response (state of the world) does not hold is gone, also for who asked by name.
    whole: bool,
}

/// In the order in which additions go out: what is referred to before what refers to it.
const ROWS: [Row; 9] = [
    Row { message: "envoy.config.cluster.v3.Cluster", name: "name", wildcard: true, whole: true },
    Row {
        message: "envoy.config.endpoint.v3.ClusterLoadAssignment",
        name: "cluster_name",
        wildcard: false,
        whole: false,
    },
    Row { message: "envoy.extensions.transport_sockets.tls.v3.Secret", name: "name", wildcard: false, whole: false },
    Row { message: "envoy.config.listener.v3.Listener", name: "name", wildcard: true, whole: true },
    Row { message: "envoy.config.route.v3.ScopedRouteConfiguration", name: "name", wildcard: true, whole: true },
    Row { message: "envoy.config.route.v3.RouteConfiguration", name: "name", wildcard: false, whole: false },
    Row { message: "envoy.config.route.v3.VirtualHost", name: "name", wildcard: true, whole: false },
    Row { message: "envoy.config.core.v3.TypedExtensionConfig", name: "name", wildcard: false, whole: false },
    Row { message: "envoy.service.runtime.v3.Runtime", name: "name", wildcard: false, whole: false },
];

impl ResourceType {
    pub const CLUSTER: Self = Self(0);
    pub const ENDPOINTS: Self = Self(1);
    pub const SECRET: Self = Self(2);
    pub const LISTENER: Self = Self(3);
    pub const SCOPED_ROUTES: Self = Self(4);
    pub const ROUTES: Self = Self(5);
    pub const VIRTUAL_HOST: Self = Self(6);
    pub const EXTENSION: Self = Self(7);
    pub const RUNTIME: Self = Self(8);

    pub(super) const COUNT: usize = ROWS.len();

    /// All of them, in the order in which additions go out.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        (0..ROWS.len() as u8).map(Self)
    }

    /// The type of a type URL; none for what is not served.
    pub fn of_url(url: &str) -> Option<Self> {
        let name = any::type_name(url)?;
        Self::all().find(|kind| kind.message() == name)
    }

    /// Full name of the message.
    pub fn message(self) -> &'static str {
        self.row().message
    }

    /// `type.googleapis.com/...`
    pub fn url(self) -> String {
        format!("type.googleapis.com/{}", self.message())
    }

    /// The message's own name, to be read by people.
    pub fn short(self) -> &'static str {
        self.message().rsplit('.').next().unwrap_or_default()
    }

    pub(super) fn name_field(self) -> &'static str {
        self.row().name
    }

    /// Whether a first request that names nothing asks for everything.
    pub fn has_silent_wildcard(self) -> bool {
        self.row().wildcard
    }

    /// Whether a response (state of the world) without a name says that it is gone.
    pub fn is_whole(self) -> bool {
        self.row().whole
    }

    pub(super) fn place(self) -> usize {
        usize::from(self.0)
    }

    fn row(self) -> &'static Row {
        const NONE: &Row = &ROWS[0];
        ROWS.get(self.place()).unwrap_or(NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_known_to_the_schema() {
        for kind in ResourceType::all() {
            let message = kind.message();
            let message = tidegate_xds::schema::message(message).expect(message);
            assert!(message.field(kind.name_field()).is_some(), "{}", kind.message());
            assert_eq!(ResourceType::of_url(&kind.url()), Some(kind));
        }
        assert_eq!(ResourceType::of_url("envoy.config.cluster.v3.Cluster"), None);
        assert_eq!(ResourceType::RUNTIME.short(), "Runtime");
        assert_eq!(ResourceType::ROUTES.short(), "RouteConfiguration");
    }
}
