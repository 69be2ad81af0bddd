//! What a head costs. Measurements, not checks: run them optimised, with `--ignored --nocapture`.

use std::hint::black_box;
use std::time::Instant;

use bytes::BytesMut;
use http::{Method, Version};

use super::request::rules;
use crate::http::codec::h1::encode::{self, Delimit};
use crate::http::codec::h1::fields::HeadEnd;
use crate::http::codec::h1::{request, response};
use crate::http::protocol::{HeaderCase, Http1Options};

const REQUEST: &[u8] =
    b"GET /api/v1/items/12345?x=y HTTP/1.1\r\nHost: service.example.com\r\nUser-Agent: curl/8.5.0\r\n\
    Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nContent-Type: application/json\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nserver: nginx\r\ndate: Tue, 24 Nov 2026 02:33:39 GMT\r\n\
    content-type: text/plain\r\ncontent-length: 100\r\n\r\n";

/// The best of some rounds, in nanoseconds for one call.
fn measure(what: &str, mut call: impl FnMut()) {
    const CALLS: u32 = 200_000;
    let round = |call: &mut dyn FnMut()| {
        let started = Instant::now();
        (0..CALLS).for_each(|_| call());
        started.elapsed().as_nanos() / u128::from(CALLS)
    };
    let best = (0..7).map(|_| round(&mut call)).min().unwrap_or_default();
    println!("{what}: {best} ns");
}

#[test]
#[ignore = "a measurement"]
fn heads() {
    let rules = rules();
    let read_request = || {
        let mut buffer = BytesMut::from(REQUEST);
        request::decode(&mut buffer, &mut HeadEnd::default(), &rules).unwrap().unwrap()
    };
    let read_response = || {
        let mut buffer = BytesMut::from(RESPONSE);
        response::decode(&mut buffer, &mut HeadEnd::default(), &Method::GET, false, &rules.limits).unwrap().unwrap()
    };
    let (request, response) = (read_request().head, read_response().head);
    let mut out = BytesMut::with_capacity(4096);
    measure("read a request of 5 fields", || drop(black_box(read_request())));
    measure("read a response of 4 fields", || drop(black_box(read_response())));
    measure("write the request", || {
        out.clear();
        encode::request(black_box(&request), Delimit::AsIs, false, &Http1Options::default(), &mut out);
    });
    measure("write the response", || {
        out.clear();
        encode::response(black_box(&response), Delimit::AsIs, None, Version::HTTP_11, HeaderCase::Lower, &mut out);
    });
}
