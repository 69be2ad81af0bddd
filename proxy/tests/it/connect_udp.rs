//! Where a CONNECT-UDP ends: datagrams of capsules become UDP packets to the host, and back.

use std::net::UdpSocket;
use std::time::Duration;

use crate::access_logs::log;
use crate::support::frames::{DATA, END_HEADERS, Frame, HEADERS, Peer, RST_STREAM};
use crate::support::gateway::{Directory, eventually, free_port};
use crate::support::{Client, Gateway, http_bootstrap_with};

const MANAGER: &str = "upgrade_configs: [{ upgrade_type: CONNECT-UDP }]
          http2_protocol_options: { allow_connect: true }";
const ROUTES: &str = "[{ match: { connect_matcher: {} }, route: { cluster: up, timeout: 0s, idle_timeout: 60s, \
                      upgrade_configs: [{ upgrade_type: CONNECT-UDP, connect_config: {} }] } }]";
const HANDSHAKE: &str = "GET /.well-known/masque/udp/a/53/ HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\n\
                         upgrade: connect-udp\r\ncapsule-protocol: ?1\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncapsule-protocol: ?1\r\n";

/// A host that the test plays.
fn host() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// The next packet, and who is to be answered.
fn packet(host: &UdpSocket) -> (Vec<u8>, std::net::SocketAddr) {
    let mut buffer = vec![0; 70_000];
    let (length, from) = host.recv_from(&mut buffer).unwrap();
    buffer.truncate(length);
    (buffer, from)
}

/// Asks for a tunnel, and reads the answer's head away.
fn tunnel(port: u16) -> Client {
    let mut client = Client::new(port);
    client.send(HANDSHAKE);
    assert_eq!(client.take(ANSWER.len()), ANSWER);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(client.take(1));
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    client
}

#[test]
fn datagrams_are_packets_both_ways() {
    let (host, upstream) = host();
    let port = free_port();
    let _gateway = Gateway::start(&http_bootstrap_with(port, MANAGER, ROUTES, &[("up", upstream)], ""));
    let mut client = tunnel(port);
    // An unknown capsule and another context are passed over; the last datagram comes in two pieces.
    client.send(b"\0\x06\0hello\x52\x34\x03abc\0\x02\x01x\0\x01\0\0\x04");
    assert_eq!(packet(&host).0, b"hello");
    let (empty, from) = packet(&host);
    assert!(empty.is_empty());
    client.send(b"\0end");
    assert_eq!(packet(&host), (b"end".to_vec(), from));
    host.send_to(b"back", from).unwrap();
    assert_eq!(client.take(12), b"7\r\n\0\x05\0back\r\n");
    host.send_to(b"", from).unwrap();
    assert_eq!(client.take(8), b"3\r\n\0\x01\0\r\n");
    let large = vec![b'x'; 9000];
    host.send_to(&large, from).unwrap();
    assert_eq!(client.take(10), b"232c\r\n\0\x63\x29\0");
    assert_eq!(client.take(9002), [&large[..], b"\r\n"].concat());
    // What comes from elsewhere is nobody's.
    let (stranger, _) = self::host();
    stranger.send_to(b"strange", from).unwrap();
    host.send_to(b"own", from).unwrap();
    assert_eq!(client.take(11), b"6\r\n\0\x04\0own\r\n");
}

#[test]
fn a_host_that_is_not_there_yet_ends_no_tunnel() {
    let (host, upstream) = host();
    drop(host);
    let port = free_port();
    let _gateway = Gateway::start(&http_bootstrap_with(port, MANAGER, ROUTES, &[("up", upstream)], ""));
    let mut client = tunnel(port);
    client.send(b"\0\x05\0lost");
    let host = UdpSocket::bind(("127.0.0.1", upstream)).unwrap();
    host.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut buffer = [0; 8];
    eventually("a packet", || {
        client.send(b"\0\x05\0here");
        host.recv_from(&mut buffer).is_ok() && &buffer[..4] == b"here"
    });
}

#[test]
fn a_broken_datagram_ends_the_tunnel_and_the_log_says_why() {
    let ((host, upstream), directory) = (host(), Directory::new());
    let (port, path) = (free_port(), directory.0.join("log"));
    let format = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED% %BYTES_SENT% \
                  %UPSTREAM_WIRE_BYTES_SENT% %UPSTREAM_WIRE_BYTES_RECEIVED% %UPSTREAM_REMOTE_ADDRESS% %UPSTREAM_LOCAL_ADDRESS%";
    let manager = format!("{MANAGER}\n          {}", log(&path, format));
    let bootstrap = http_bootstrap_with(port, &manager, ROUTES, &[("up", upstream)], "");
    let _gateway = Gateway::start_with(&bootstrap, &["--file-flush-interval-msec", "10"]);
    let mut client = tunnel(port);
    client.send(b"\0\x06\0hello");
    let (_, from) = packet(&host);
    host.send_to(b"back", from).unwrap();
    client.take(12);
    client.send(b"\0\0\0\x06\0after");
    assert!(client.rest().is_empty());
    eventually("the line", || {
        std::fs::read_to_string(&path).unwrap()
            == format!(
                "200 UPE upstream_reset_after_response_started{{protocol_error|Visitor_failed_to_process_capsule}} 18 7 5 7 \
                 127.0.0.1:{upstream} -\n"
            )
    });
}

#[test]
fn a_tunnel_of_http_2_goes_on_after_the_clients_end() {
    let (host, upstream) = host();
    let port = free_port();
    let _gateway = Gateway::start(&http_bootstrap_with(port, MANAGER, ROUTES, &[("up", upstream)], ""));
    let mut client = Peer::client(port);
    let field = |name: &str, value: &str| {
        let length = |text: &str| u8::try_from(text.len()).unwrap();
        [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
    };
    let head = [
        field(":method", "CONNECT"),
        field(":protocol", "connect-udp"),
        field(":scheme", "http"),
        field(":path", "/.well-known/masque/udp/a/53/"),
        field(":authority", "a"),
    ]
    .concat();
    let ask = |client: &mut Peer, stream: u32| {
        client.send(&Frame::new(HEADERS, END_HEADERS, stream, &head));
        let answer = client.next_of(HEADERS).unwrap();
        assert_eq!((answer.stream, answer.payload[0]), (stream, 0x88), "a 200");
    };
    ask(&mut client, 1);
    client.send(&Frame::new(DATA, 1, 1, b"\0\x06\0hello"));
    let (hello, from) = packet(&host);
    assert_eq!(hello, b"hello");
    host.send_to(b"late", from).unwrap();
    let late = client.next_of(DATA).unwrap();
    assert_eq!((late.flags, &late.payload[..]), (0, &b"\0\x05\0late"[..]));
    ask(&mut client, 3);
    client.send(&Frame::new(DATA, 0, 3, b"\0\0"));
    let reset = client.next_of(RST_STREAM).unwrap();
    assert_eq!((reset.stream, reset.payload), (3, vec![0, 0, 0, 2]));
}

#[test]
fn packets_that_the_client_does_not_take_are_dropped() {
    let (host, upstream) = host();
    let port = free_port();
    let _gateway = Gateway::start(&http_bootstrap_with(port, MANAGER, ROUTES, &[("up", upstream)], ""));
    let mut client = tunnel(port);
    client.send(b"\0\x06\0hello");
    let (_, from) = packet(&host);
    // Far more than the sockets and the buffers on the way hold.
    const PACKETS: u32 = 2000;
    for n in 0..PACKETS {
        host.send_to(&[&n.to_be_bytes()[..], &[0; 32_000]].concat(), from).unwrap();
    }
    // Packets come whole and in their order; what there was no room for is gone.
    let (mut came, mut last) = (0, None);
    while last != Some(u32::MAX) {
        assert_eq!(client.take(11), b"7d0a\r\n\0\x80\0\x7d\x05", "a whole packet");
        assert_eq!(client.take(1), b"\0");
        let n = u32::from_be_bytes(client.take(4).try_into().unwrap());
        client.take(32_002);
        assert!(last.is_none_or(|last| last < n), "{n} after {last:?}");
        (came, last) = (came + 1, Some(n));
        host.send_to(&[&u32::MAX.to_be_bytes()[..], &[0; 32_000]].concat(), from).unwrap();
    }
    assert!(came < PACKETS, "none was dropped");
}
