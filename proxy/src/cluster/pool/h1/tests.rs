//! Tests of the pool's bookkeeping; what goes over the wire is tested with the whole proxy.

use tidegate_filters::metadata::{FilterState, Sharing, Text};
use tidegate_filters::runtime::NoRuntime;
use tidegate_stats::Store;
use tokio::net::UnixStream;

use super::*;
use crate::cluster::circuit_breaker::{Resource, RoutingPriority};
use crate::config::cluster::testing::cluster as compiled;

const ONE: &str = "{name: a, load_assignment: {cluster_name: a, endpoints: [{lb_endpoints: [\
    {endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}}]}]}}";

fn pool() -> Arc<Pool> {
    let cluster = Cluster::new(compiled(ONE).config, None, &Store::new().root(), &NoRuntime, 7);
    let host = Arc::clone(cluster.hosts().hosts().next().unwrap());
    Arc::new(Pool::new(cluster, host, RoutingPriority::Default, place::Whom::default()))
}

/// A connection, and the host's end of it.
fn connection(pool: &Pool) -> (Box<Connection>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (read, write) = tokio::io::split(Transport::Unix(ours));
    let now = Instant::now();
    let permit = pool.cluster.breakers(pool.priority).take(Resource::Connections);
    let facts = ConnectionFacts {
        id: 1,
        local: None,
        protocol: http::Version::HTTP_11,
        connect_start: now,
        connected: now,
        shared: None,
        tls: None,
    };
    let connection = Connection {
        reader: Reader::new(read),
        writer: Writer::new(write, 1),
        facts,
        open: Open::new(&pool.cluster, &pool.host, permit),
        idle_since: now,
    };
    (Box::new(connection), theirs)
}

fn active_and_idle(pool: &Pool) -> (usize, usize) {
    let state = pool.state.lock();
    (state.active, state.idle.len())
}

#[tokio::test]
async fn a_connection_for_one_who_left_stays_in_the_pool() {
    let pool = pool();
    let waiting = pool.state.lock().waiters.join();
    let (connection, _host) = connection(&pool);
    pool.hand_out(&mut pool.state.lock(), connection);
    assert_eq!(pool.state.lock().active, 1);
    // The request was cancelled after the connection was given to it, and before it took it.
    drop(waiting);
    assert_eq!(active_and_idle(&pool), (0, 1));
}

#[tokio::test]
async fn a_connection_that_ends_amid_a_request_is_counted_so() {
    let pool = Arc::clone(&pool());
    let traffic = &pool.cluster.stats().traffic;
    let lease = || {
        let (mut connection, _) = connection(&pool);
        connection.open.busy = true;
        pool.state.lock().active += 1;
        let active = Active::begin(&pool.cluster, &pool.host, pool.priority);
        Lease { connection: Some(connection), pool: Arc::clone(&pool), active }
    };
    // Its response was whole.
    lease().finish(false);
    assert_eq!(
        (traffic.upstream_cx_destroy_local().value(), traffic.upstream_cx_destroy_with_active_rq().value()),
        (1, 0)
    );
    drop(lease());
    assert_eq!(
        (traffic.upstream_cx_destroy_local().value(), traffic.upstream_cx_destroy_with_active_rq().value()),
        (2, 1)
    );
    assert_eq!(traffic.upstream_cx_destroy_local_with_active_rq().value(), 1);
}

#[tokio::test]
async fn a_free_connection_goes_to_whoever_waits_longest_and_still_does() {
    let pool = pool();
    let gone = pool.state.lock().waiters.join();
    let mut waiting = pool.state.lock().waiters.join();
    drop(gone);
    let (connection, _host) = connection(&pool);
    pool.hand_out(&mut pool.state.lock(), connection);
    let lease = waiting.try_recv().unwrap().unwrap();
    assert_eq!(active_and_idle(&pool), (1, 0));
    lease.finish(true);
    assert_eq!(active_and_idle(&pool), (0, 1));
}

/// A pool of a cluster that may have one.
fn only_pool() -> Arc<Pool> {
    let text = ONE.replace("{name: a,", "{name: a, circuit_breakers: {thresholds: [{max_connection_pools: 1}]},");
    let cluster = Cluster::new(compiled(&text).config, None, &Store::new().root(), &NoRuntime, 7);
    let host = Arc::clone(cluster.hosts().hosts().next().unwrap());
    Arc::new(Pool::new(cluster, host, RoutingPriority::Default, place::Whom::default()))
}

fn places(pool: &Pool) -> u32 {
    pool.cluster.breakers(RoutingPriority::Default).used(Resource::Pools)
}

#[tokio::test]
async fn a_pool_has_a_place_while_there_is_anything_in_it() {
    let pool = only_pool();
    let waiting = pool.state.lock().waiters.join();
    let shared = |text: &str| {
        let mut state = FilterState::default();
        state.set("k", std::sync::Arc::new(Text(text.to_owned())), false, Sharing::Once);
        state
    };
    let shares = |pool: &Pool| pool.state.lock().place.shared.as_ref().and_then(|shared| shared.get("k")?.text());
    pool.enter(&shared("first")).unwrap();
    pool.enter(&shared("second")).unwrap();
    assert_eq!(shares(&pool).as_deref(), Some("first"));
    assert_eq!(places(&pool), 1);
    let (connection, _host) = connection(&pool);
    pool.hand_out(&mut pool.state.lock(), connection);
    let lease = waiting.await.unwrap().unwrap();
    lease.finish(true);
    assert_eq!(places(&pool), 1);
    let connection = pool.take_idle().unwrap();
    pool.give_back(connection, false);
    assert_eq!(places(&pool), 0);
    // Whoever opens it anew has something of his own to share.
    pool.enter(&FilterState::default()).unwrap();
    assert_eq!(shares(&pool), None);
}

#[tokio::test]
async fn a_pool_that_rests_makes_room_for_another_of_its_host_only() {
    let resting = only_pool();
    let key = resting.key();
    POOLS.with_borrow_mut(|pools| pools.h1.insert(key.clone(), Arc::clone(&resting)));
    resting.enter(&FilterState::default()).unwrap();
    let (connection, _host) = connection(&resting);
    resting.hand_out(&mut resting.state.lock(), connection);
    let elsewhere = only_pool();
    let refused = place::take(&resting.cluster, &elsewhere.key());
    assert!(matches!(refused, Err(PoolError::NoPool)));
    assert_eq!(resting.cluster.stats().traffic.upstream_cx_pool_overflow().value(), 1);
    let busy = resting.take_idle().unwrap();
    assert!(place::take(&resting.cluster, &key).is_err());
    resting.give_back(busy, true);
    let place = place::take(&resting.cluster, &key).unwrap();
    assert_eq!((active_and_idle(&resting), places(&resting)), ((0, 0), 1));
    drop(place);
    POOLS.with_borrow_mut(|pools| pools.h1.remove(&key));
}

/// Clients choose the names of `auto_sni`: what was asked for once is not kept for ever.
#[tokio::test]
async fn a_pool_for_a_name_is_forgotten_once_it_is_empty() {
    let (plain, named) = (pool(), pool());
    let Some(named) = Arc::into_inner(named) else { unreachable!("nobody else has it") };
    let whom = place::Whom { server_name: Some("a.test".into()), ..place::Whom::default() };
    let named = Arc::new(Pool { whom, ..named });
    let (connection, host) = connection(&named);
    named.hand_out(&mut named.state.lock(), connection);
    assert!(plain.sweep(Instant::now(), None) && named.sweep(Instant::now(), None));
    drop(host);
    // The runtime tells of the host's end when it looks.
    let forgotten = async {
        while named.sweep(Instant::now(), None) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), forgotten).await.expect("it is kept");
    assert!(plain.sweep(Instant::now(), None));
}
