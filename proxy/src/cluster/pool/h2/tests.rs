//! Tests of the pool's bookkeeping; what goes over the wire is tested with the whole proxy.

use tidegate_filters::runtime::NoRuntime;
use tidegate_stats::Store;

use super::*;
use crate::cluster::circuit_breaker::RoutingPriority;
use crate::config::cluster::testing::cluster as compiled;

const ONE_STREAM: &str = "{name: a, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: \
    {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
    explicit_http_config: {http2_protocol_options: {max_concurrent_streams: 1}}}}, \
    load_assignment: {cluster_name: a, endpoints: [{lb_endpoints: [\
    {endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}}]}]}}";

fn pool() -> Arc<Pool> {
    let cluster = Cluster::new(compiled(ONE_STREAM).config, None, &Store::new().root(), &NoRuntime, 7);
    let host = Arc::clone(cluster.hosts().hosts().next().unwrap());
    Arc::new(Pool::new(cluster, host, RoutingPriority::Default, place::Whom::default()))
}

/// A connection, and the host's end of it.
async fn connection(pool: &Pool) -> (Arc<Connection>, tokio::io::DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let settings = options(&pool.cluster);
    let (transport, meter) = Metered::new(ours, settings.floods, false, None);
    let (sender, running) = h2::client::handshake(transport).await.unwrap();
    let task = tokio::spawn(async move {
        let _ = running.await;
    });
    let now = Instant::now();
    let facts = ConnectionFacts {
        id: 1,
        local: None,
        protocol: http::Version::HTTP_2,
        connect_start: now,
        connected: now,
        shared: None,
        tls: None,
    };
    let epoch = pool.host.state.epoch();
    let connection =
        Connection { sender, epoch, facts, shared: Arc::new(Shared::new()), meter, task: task.abort_handle() };
    let connection = Arc::new(connection);
    pool.state.lock().connections.push(Arc::clone(&connection));
    (connection, theirs)
}

fn stream_on(pool: &Arc<Pool>, offer: Offer) -> Lease {
    let active = Active::begin(&pool.cluster, &pool.host, pool.priority).unwrap();
    Lease::new(offer.take(), Arc::clone(pool), active)
}

#[tokio::test]
async fn a_place_for_one_who_left_goes_to_the_next() {
    let pool = pool();
    let (connection, _host) = connection(&pool).await;
    let stream = stream_on(&pool, pool.with_room().unwrap());
    assert!(pool.with_room().is_none());
    let join = || pool.state.lock().waiters.join();
    let (first, mut second) = (join(), join());
    drop(stream);
    assert!(second.try_recv().is_err(), "there is one place, and it is the first's");
    assert_eq!(pool.room(&connection), 0);
    // The request was cancelled after the place was given to it, and before it took it.
    drop(first);
    let stream = stream_on(&pool, second.try_recv().unwrap().unwrap());
    assert_eq!(pool.room(&connection), 0);
    drop(stream);
    assert_eq!(pool.room(&connection), 1);
}

#[tokio::test]
async fn nobody_is_sent_to_a_connection_without_room() {
    let pool = pool();
    let (connection, _host) = connection(&pool).await;
    let offers = [(); 2].map(|()| Offer::new(&pool, &connection));
    let [first, second] = offers.map(|offer| stream_on(&pool, offer));
    let mut waiting = pool.state.lock().waiters.join();
    // One stream more than allowed was under way: its place is nobody's.
    drop(first);
    assert!(waiting.try_recv().is_err());
    drop(second);
    assert!(waiting.try_recv().unwrap().is_ok());
}
