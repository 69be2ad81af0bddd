//! Tests of `server`.

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::client::{ClientContext, ClientSettings, Target};
use crate::ocsp::OcspResponse;
use crate::parameters::{Version, Wanted};
use crate::testing::Authority;
use crate::validation::Reason;

fn parameters(max: Version) -> Parameters {
    let wanted = Wanted { min: Version::Tls12, max, cipher_suites: &[], groups: &[], signature_algorithms: &[] };
    Parameters::new(&wanted).unwrap()
}

fn server(identities: Vec<Arc<Identity>>, validation: Validation) -> ServerSettings {
    ServerSettings {
        parameters: parameters(Version::Tls13),
        identities,
        validation: Arc::new(validation),
        require_client_certificate: false,
        require_server_name: false,
        alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        prefer_client_ciphers: false,
        full_scan: false,
        stapling: Stapling::Lenient,
        tickets: Some(TicketKeys::Random),
        stateful_sessions: true,
        session_timeout: None,
        digest: [0; 32],
    }
}

fn client(identity: Option<Arc<Identity>>, validation: Validation) -> ClientSettings {
    ClientSettings {
        parameters: parameters(Version::Tls13),
        identity,
        validation: Arc::new(validation),
        expects_server_name: false,
        enforces_rsa_key_usage: false,
        alpn: Vec::new(),
        kept_sessions: 4,
    }
}

type Side = Result<(TlsStream<DuplexStream>, Session), Failure>;

/// Both sides' ends of a handshake; a byte each way has gone where it came about.
async fn shake(server: &ServerContext, client: &ClientContext, name: Option<&str>) -> (Side, Side) {
    shake_with(server, client, Target { server_name: name, expected: None, address: None, alpn: None }).await
}

async fn shake_with(server: &ServerContext, client: &ClientContext, target: Target<'_>) -> (Side, Side) {
    let (ours, theirs) = duplex(64 << 10);
    let accept = async {
        let (mut stream, session) = server.accept(ours).await?;
        stream.write_all(b"s").await?;
        stream.flush().await?;
        Ok((stream, session))
    };
    let connect = async {
        let (mut stream, session) = client.connect(theirs, target).await?;
        // Of TLS 1.3 a client learns only now whether it was let in.
        let mut byte = [0];
        match stream.read(&mut byte).await {
            Ok(1) => Ok((stream, session)),
            Ok(_) => Err(Failure::Io(std::io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(Failure::of(error, None)),
        }
    };
    tokio::join!(accept, connect)
}

fn build(settings: ServerSettings) -> ServerContext {
    ServerContext::build(settings).unwrap()
}

fn build_client(settings: ClientSettings) -> ClientContext {
    ClientContext::build(settings).unwrap()
}

fn fingerprint(chain: &[CertificateDer<'_>]) -> String {
    crate::Certificate::parse(&chain[0]).unwrap().sha256
}

#[tokio::test]
async fn both_sides_know_each_other() {
    let root = Authority::new("root");
    let (host, guest) = (root.identity(&["a.test"]), root.identity(&["guest.test"]));
    let settings = ServerSettings { require_client_certificate: true, ..server(vec![host.clone()], root.validation()) };
    let settings_of_client =
        ClientSettings { alpn: vec![b"http/1.1".to_vec()], ..client(Some(guest.clone()), root.validation()) };
    let (server, client) = shake(&build(settings), &build_client(settings_of_client), Some("a.test")).await;
    let ((_, server), (_, client)) = (server.unwrap(), client.unwrap());
    assert_eq!((server.version, server.alpn.as_deref()), ("TLSv1.3", Some(b"http/1.1".as_slice())));
    assert_eq!((server.server_name.as_deref(), server.peer_validated), (Some("a.test"), true));
    assert_eq!(fingerprint(&server.peer_chain), guest.leaf().sha256);
    assert_eq!(fingerprint(&client.peer_chain), host.leaf().sha256);
    assert_eq!(client.local.unwrap().leaf().sha256, guest.leaf().sha256);
    assert_eq!(server.peer_signature, Some("ecdsa_secp256r1_sha256"));
    assert_eq!((server.cipher, server.group), ("TLS_AES_128_GCM_SHA256", Some("X25519")));
}

#[tokio::test]
async fn whoever_is_not_who_he_must_be_is_turned_away() {
    let (root, other) = (Authority::new("root"), Authority::new("other"));
    for version in [Version::Tls12, Version::Tls13] {
        let strict = |validation| ServerSettings {
            require_client_certificate: true,
            parameters: parameters(version),
            ..server(vec![root.identity(&["a.test"])], validation)
        };
        let (none, _) =
            shake(&build(strict(root.validation())), &build_client(client(None, root.validation())), None).await;
        assert!(matches!(none, Err(Failure::NoCertificate)), "{version:?} {none:?}");
        let guest = Some(other.identity(&["guest.test"]));
        let context = build_client(client(guest.clone(), root.validation()));
        let (wrong, told) = shake(&build(strict(root.validation())), &context, None).await;
        assert!(matches!(wrong, Err(Failure::Verify(Reason::Chain(_)))), "{version:?} {wrong:?}");
        let told = told.unwrap_err();
        assert!(told.reason().contains("TLSV1_ALERT_UNKNOWN_CA"), "{told:?}");
        // Anybody with any certificate, where nothing is asked of it.
        let (any, _) = shake(&build(strict(Validation::default())), &context, None).await;
        assert!(!any.unwrap().1.peer_validated);
    }
    let (server, client) = shake(
        &build(server(vec![root.identity(&[])], Validation::default())),
        &build_client(client(None, other.validation())),
        None,
    )
    .await;
    assert!(matches!(client, Err(Failure::Verify(Reason::Chain(_)))), "{client:?}");
    assert!(server.is_err());
}

#[tokio::test]
async fn a_host_must_have_the_name_that_was_asked_for() {
    let root = Authority::new("root");
    let server = build(server(vec![root.identity(&["a.test"])], Validation::default()));
    let context = build_client(ClientSettings { expects_server_name: true, ..client(None, root.validation()) });
    assert!(shake(&server, &context, Some("a.test")).await.1.is_ok());
    for name in [Some("b.test"), None] {
        let (_, refused) = shake(&server, &context, name).await;
        assert!(matches!(refused, Err(Failure::Verify(Reason::San(_)))), "{name:?} {refused:?}");
    }
}

/// One session is for all names that a host is asked for by; its certificate need not have them all.
#[tokio::test]
async fn a_session_is_resumed_for_who_the_certificate_is() {
    let root = Authority::new("root");
    for version in [Version::Tls12, Version::Tls13] {
        let settings = server(vec![root.identity(&["a.test", "b.test"])], Validation::default());
        let server = build(ServerSettings { parameters: parameters(version), ..settings });
        let context = build_client(client(None, root.validation()));
        for (expected, resumed) in [("a.test", Some(false)), ("b.test", Some(true)), ("c.test", None)] {
            let expected = Arc::from(expected);
            let target = Target { server_name: Some("a.test"), expected: Some(&expected), address: None, alpn: None };
            match (shake_with(&server, &context, target).await.1, resumed) {
                (Ok((_, session)), Some(resumed)) => {
                    assert_eq!((session.resumed, session.peer_validated), (resumed, true), "{version:?} {expected}");
                }
                (Err(Failure::Verify(Reason::San(_))), None) => {}
                (other, _) => panic!("{version:?} {expected} {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_session_of_one_who_was_let_in_untrusted_says_so() {
    let (root, other) = (Authority::new("root"), Authority::new("other"));
    let server = build(server(vec![root.identity(&["a.test"])], Validation::default()));
    for (trusted, validated) in [(&root, true), (&other, false)] {
        let validation = Validation { accept_untrusted: true, ..trusted.validation() };
        let context = build_client(client(None, validation));
        for resumed in [false, true] {
            let session = shake(&server, &context, Some("a.test")).await.1.unwrap().1;
            assert_eq!((session.resumed, session.peer_validated), (resumed, validated));
            assert_eq!(session.doubt.is_some(), !validated && !resumed);
        }
    }
}

#[tokio::test]
async fn what_is_no_name_is_told_before_anything_is_sent() {
    let root = Authority::new("root");
    let context = build_client(client(None, root.validation()));
    for name in ["-", "a..test", "%41", "*.a.test", "a b"] {
        let (near, mut far) = duplex(1024);
        let target = Target { server_name: Some(name), expected: None, address: None, alpn: None };
        let failure = context.connect(near, target).await.unwrap_err();
        assert_eq!(failure.reason(), format!("TLS cannot name the host '{name}' (RFC 6066 section 3)"));
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
    }
    for name in ["a.test", "_a.b_c.test", "a.test.", "127.0.0.1", "::1"] {
        assert!(crate::client::check_server_name(name).is_ok(), "{name}");
    }
}

/// What a server told of stapling, and whether it let a client of rustls in, which takes a response.
async fn stapled(ocsp: Option<Duration>, stapling: Stapling) -> (Option<Staple>, bool) {
    let root = Authority::new("root");
    let plain = root.identity(&["a.test"]);
    let ocsp = ocsp.map(|until| OcspResponse::until(SystemTime::UNIX_EPOCH + until));
    let mut identity = Arc::into_inner(plain).unwrap();
    identity.ocsp = ocsp;
    let server = build(ServerSettings { stapling, ..server(vec![Arc::new(identity)], Validation::default()) });
    let client = build_client(client(None, root.validation()));
    let (ours, theirs) = duplex(64 << 10);
    let mut told = None;
    let target = Target { server_name: None, expected: None, address: None, alpn: None };
    let (accepted, _) =
        tokio::join!(server.accept_telling(ours, |staple| told = Some(staple)), client.connect(theirs, target));
    (told, accepted.is_ok())
}

#[tokio::test]
async fn what_became_of_stapling_is_told() {
    let (past, future) = (Some(Duration::from_secs(1)), Some(Duration::from_secs(1 << 40)));
    for (ocsp, stapling, told, accepted) in [
        (future, Stapling::Lenient, Staple::Sent, true),
        (past, Stapling::Lenient, Staple::Omitted, true),
        (None, Stapling::Lenient, Staple::Omitted, true),
        (None, Stapling::Strict, Staple::Omitted, true),
        (past, Stapling::Strict, Staple::Failed, false),
        (past, Stapling::Must, Staple::Failed, false),
        (future, Stapling::Must, Staple::Sent, true),
    ] {
        assert_eq!(stapled(ocsp, stapling).await, (Some(told), accepted), "{ocsp:?} {stapling:?}");
    }
    let without = vec![Authority::new("root").identity(&[])];
    let settings = ServerSettings { stapling: Stapling::Must, ..server(without, Validation::default()) };
    let refused = ServerContext::build(settings).unwrap_err();
    assert_eq!(refused.0, "Required OCSP response is missing from TLS context");
}

#[tokio::test]
async fn names_choose_certificates() {
    let root = Authority::new("root");
    let all = vec![root.identity(&["first.test"]), root.identity(&["*.a.test"]), root.identity(&["x.a.test"])];
    let context = build_client(client(None, root.validation()));
    let server = build(server(all.clone(), Validation::default()));
    for (name, index) in [
        (Some("first.test"), 0),
        (Some("y.a.test"), 1),
        (Some("X.A.test"), 2),
        (Some("y.x.a.test"), 0),
        (Some("unknown.test"), 0),
        (None, 0),
    ] {
        let (_, client) = shake(&server, &context, name).await;
        assert_eq!(fingerprint(&client.unwrap().1.peer_chain), all[index].leaf().sha256, "{name:?}");
    }
}

#[tokio::test]
async fn of_tls_1_2_the_suites_choose_the_kind_of_key() {
    let root = Authority::new("root");
    let (chain, key) = root.issue_rsa(&["a.test"]);
    let rsa = Arc::new(Identity::load(chain.as_bytes(), key.as_bytes(), None, "<inline>").unwrap());
    let ecdsa = root.identity(&["a.test"]);
    let server = build(server(vec![ecdsa.clone(), rsa.clone()], Validation::default()));
    for (suites, max, chosen) in [
        (&["ECDHE-RSA-AES128-GCM-SHA256"][..], Version::Tls12, &rsa),
        (&["ECDHE-ECDSA-AES128-GCM-SHA256"], Version::Tls12, &ecdsa),
        (&[], Version::Tls12, &ecdsa),
        (&["ECDHE-RSA-AES128-GCM-SHA256"], Version::Tls13, &ecdsa),
    ] {
        let suites: Vec<String> = suites.iter().map(ToString::to_string).collect();
        let wanted =
            Wanted { min: Version::Tls12, max, cipher_suites: &suites, groups: &[], signature_algorithms: &[] };
        let parameters = Parameters::new(&wanted).unwrap();
        let context = build_client(ClientSettings { parameters, ..client(None, root.validation()) });
        let (_, client) = shake(&server, &context, Some("a.test")).await;
        let presented = fingerprint(&client.unwrap().1.peer_chain);
        assert_eq!(presented, chosen.leaf().sha256, "{suites:?} {max:?}");
    }
}

/// RFC 8446 section 4.1.3: who would have got TLS 1.3 learns it, so that nobody in between can take it away.
#[tokio::test]
async fn an_answer_in_tls_1_2_says_that_there_is_a_better_one() {
    let root = Authority::new("root");
    for (max, expected) in [(Version::Tls13, true), (Version::Tls12, false)] {
        let settings =
            ServerSettings { parameters: parameters(max), ..server(vec![root.identity(&[])], Validation::default()) };
        let (server, (ours, mut theirs)) = (build(settings), duplex(64 << 10));
        let old = ClientSettings { parameters: parameters(Version::Tls12), ..client(None, root.validation()) };
        let client = build_client(old);
        let answer = async {
            let (near, mut far) = duplex(64 << 10);
            let target = Target { server_name: Some("a.test"), expected: None, address: None, alpn: None };
            let hello = async {
                let mut hello = vec![0; 4096];
                let n = far.read(&mut hello).await.unwrap();
                theirs.write_all(&hello[..n]).await.unwrap();
                let mut answer = vec![0; 64];
                theirs.read_exact(&mut answer).await.unwrap();
                answer
            };
            tokio::select! { _ = client.connect(near, target) => unreachable!(), answer = hello => answer }
        };
        let answer = tokio::select! { _ = server.accept(ours) => unreachable!(), answer = answer => answer };
        // The record's head, the message's, the version; then the random.
        let random = &answer[5 + 4 + 2..][..32];
        assert_eq!(random.ends_with(b"DOWNGRD\x01"), expected, "{random:x?}");
    }
}

#[tokio::test]
async fn protocols_that_are_not_ours_are_no_reason_to_hang_up() {
    let root = Authority::new("root");
    let server = build(server(vec![root.identity(&[])], Validation::default()));
    for (offered, expected) in
        [(&["http/1.1", "h2"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&["acme"], None), (&[], None)]
    {
        let alpn = offered.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let (_, client) =
            shake(&server, &build_client(ClientSettings { alpn, ..client(None, root.validation()) }), None).await;
        let agreed = client.unwrap().1.alpn.map(|protocol| String::from_utf8(protocol).unwrap());
        assert_eq!(agreed.as_deref(), expected, "{offered:?}");
    }
}

#[tokio::test]
async fn a_client_can_have_to_name_a_host() {
    let root = Authority::new("root");
    let settings =
        ServerSettings { require_server_name: true, ..server(vec![root.identity(&[])], Validation::default()) };
    let (server, context) = (build(settings), build_client(client(None, root.validation())));
    assert!(shake(&server, &context, Some("a.test")).await.0.is_ok());
    let (refused, told) = shake(&server, &context, None).await;
    assert!(matches!(refused, Err(Failure::NoServerName)));
    assert!(told.unwrap_err().reason().contains("HANDSHAKE_FAILURE"));
}

/// Settings that ask for clients' certificates, with ticket keys that other contexts share.
fn asking(root: &Authority, trusted: Validation, digest: u8, version: Version) -> ServerSettings {
    ServerSettings {
        parameters: parameters(version),
        require_client_certificate: true,
        tickets: Some(TicketKeys::given([vec![7; 80]]).unwrap()),
        digest: [digest; 32],
        ..server(vec![root.identity(&[])], trusted)
    }
}

#[tokio::test]
async fn sessions_are_resumed_and_trust_is_looked_at_again() {
    let (root, other) = (Authority::new("root"), Authority::new("other"));
    for version in [Version::Tls12, Version::Tls13] {
        let context = build_client(client(Some(root.identity(&["guest.test"])), root.validation()));
        let first = build(asking(&root, root.validation(), 0, version));
        assert!(!shake(&first, &context, Some("a.test")).await.0.unwrap().1.resumed);
        let (again, _) = shake(&first, &context, Some("a.test")).await;
        let again = again.unwrap().1;
        assert!(again.resumed && again.peer_validated && !again.peer_chain.is_empty(), "{version:?} {again:?}");
        // Other roots, and yet the same keys for tickets: the chain that the ticket holds is not good any more.
        let changed = build(asking(&root, other.validation(), 0, version));
        let (refused, _) = shake(&changed, &context, Some("a.test")).await;
        assert!(matches!(refused, Err(Failure::Verify(Reason::Chain(_)))), "{version:?} {refused:?}");
    }
}

#[tokio::test]
async fn sessions_of_another_context_are_not_resumed() {
    let root = Authority::new("root");
    let context = build_client(client(Some(root.identity(&["guest.test"])), root.validation()));
    let of = |digest| build(asking(&root, root.validation(), digest, Version::Tls13));
    assert!(shake(&of(0), &context, Some("a.test")).await.0.is_ok());
    let (other, _) = shake(&of(1), &context, Some("a.test")).await;
    assert!(!other.unwrap().1.resumed);
}

#[tokio::test]
async fn what_is_no_tls_is_answered_with_an_alert() {
    let root = Authority::new("root");
    let server = build(server(vec![root.identity(&[])], Validation::default()));
    let (ours, mut theirs) = duplex(1024);
    theirs.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let failure = server.accept(ours).await.unwrap_err();
    assert!(failure.is_connection_error(), "{failure:?}");
    let mut answer = Vec::new();
    theirs.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer[0], 0x15, "{answer:?}");
    let (ours, theirs) = duplex(1024);
    drop(theirs);
    assert!(matches!(server.accept(ours).await, Err(Failure::Io(_))));
}

/// As both logs show it, white space and all that frames it left out.
fn said(side: Side) -> String {
    let said = side.unwrap_err().reason();
    said.trim_start_matches("TLS_error:|")
        .trim_end_matches(":TLS_error_end")
        .replace("SSL routines:OPENSSL_internal:", "")
}

#[tokio::test]
async fn a_failure_is_worded_as_envoy_words_it() {
    let (root, other) = (Authority::new("root"), Authority::new("other"));
    let identity = root.identity(&["a.test"]);
    let with = |wanted: Wanted<'_>| Parameters::new(&wanted).unwrap();
    let plain = || Wanted {
        min: Version::Tls12,
        max: Version::Tls13,
        cipher_suites: &[],
        groups: &[],
        signature_algorithms: &[],
    };
    let only = |suite: &str| {
        let suites = [suite.to_owned()];
        with(Wanted { cipher_suites: &suites, max: Version::Tls12, ..plain() })
    };
    let group = |name: &str| {
        let groups = [name.to_owned()];
        with(Wanted { groups: &groups, ..plain() })
    };
    let newest = || with(Wanted { min: Version::Tls13, ..plain() });
    let oldest = || with(Wanted { max: Version::Tls12, ..plain() });
    let (chacha, aes) = ("ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-GCM-SHA256");
    let no_certificate = "268435648:PEER_DID_NOT_RETURN_A_CERTIFICATE:peer did not provide required client certificate";
    let refused_hello = "268436496:SSLV3_ALERT_HANDSHAKE_FAILURE|268435610:HANDSHAKE_FAILURE_ON_CLIENT_HELLO";
    for (ours, theirs, asks, by_server, by_client) in [
        (newest(), oldest(), false, "268435696:UNSUPPORTED_PROTOCOL", "268436526:TLSV1_ALERT_PROTOCOL_VERSION"),
        (oldest(), newest(), false, "268435696:UNSUPPORTED_PROTOCOL", "268436526:TLSV1_ALERT_PROTOCOL_VERSION"),
        (only(chacha), only(aes), false, "268435640:NO_SHARED_CIPHER", refused_hello),
        (group("P-256"), group("X25519"), false, "268435722:NO_SHARED_GROUP", refused_hello),
        (newest(), newest(), true, no_certificate, "268436572:TLSV1_ALERT_CERTIFICATE_REQUIRED"),
        // Of TLS 1.2 BoringSSL would send a client the alert `handshake_failure`.
        (oldest(), oldest(), true, no_certificate, "268436572:TLSV1_ALERT_CERTIFICATE_REQUIRED"),
    ] {
        let server = build(ServerSettings {
            parameters: ours,
            require_client_certificate: asks,
            ..server(vec![identity.clone()], if asks { root.validation() } else { Validation::default() })
        });
        let client = build_client(ClientSettings { parameters: theirs, ..client(None, root.validation()) });
        let (server, client) = shake(&server, &client, Some("a.test")).await;
        assert_eq!((said(server), said(client)), (by_server.to_owned(), by_client.to_owned()));
    }
    let server = build(server(vec![identity], Validation::default()));
    let (server, client) = shake(&server, &build_client(client(None, other.validation())), Some("a.test")).await;
    assert_eq!(said(server), "268436504:TLSV1_ALERT_UNKNOWN_CA");
    let expected = "268435581:CERTIFICATE_VERIFY_FAILED:verify cert failed: X509_verify_cert: certificate verification \
                    error at depth 0: unable to get local issuer certificate";
    assert_eq!(said(client), expected);
}

#[tokio::test]
async fn what_is_no_hello_is_called_by_its_name() {
    let root = Authority::new("root");
    let server = build(server(vec![root.identity(&[])], Validation::default()));
    for (first, expected) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "268435612:HTTP_REQUEST"),
        (b"POST / HTTP/1.1\r\n\r\n", "268435612:HTTP_REQUEST"),
        (b"CONNECT a:1 HTTP/1.1\r\n\r\n", "268435611:HTTPS_PROXY_REQUEST"),
        (b"DELETE / HTTP/1.1\r\n\r\n", "268435703:WRONG_VERSION_NUMBER"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "268435703:WRONG_VERSION_NUMBER"),
        (&[0; 60], "268435703:WRONG_VERSION_NUMBER"),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "268435587:CLIENTHELLO_PARSE_FAILED"),
        (b"\x17\x03\x01\x00\x05\x01\x00\x00\x01\x00", "268435681:UNEXPECTED_RECORD"),
    ] {
        let (ours, mut theirs) = duplex(1024);
        theirs.write_all(first).await.unwrap();
        let failure = server.accept(ours).await;
        assert_eq!(said(failure), expected, "{}", String::from_utf8_lossy(first));
    }
}

#[tokio::test]
async fn what_a_client_has_is_known_whether_or_not_it_was_asked() {
    let root = Authority::new("root");
    let guest = root.identity(&["guest.test"]);
    let server = build(server(vec![root.identity(&[])], Validation::default()));
    let context = build_client(client(Some(guest.clone()), root.validation()));
    let (server, client) = shake(&server, &context, None).await;
    assert!(server.unwrap().1.peer_chain.is_empty());
    assert_eq!(client.unwrap().1.local.unwrap().leaf().sha256, guest.leaf().sha256);
}

/// A ticket that was given where nobody has to show a certificate lets nobody in where everybody has to.
#[tokio::test]
async fn nobody_without_a_certificate_is_resumed_where_one_is_demanded() {
    let root = Authority::new("root");
    for version in [Version::Tls12, Version::Tls13] {
        let context = build_client(client(None, root.validation()));
        let lax = ServerSettings { require_client_certificate: false, ..asking(&root, root.validation(), 0, version) };
        let lax = build(lax);
        assert!(shake(&lax, &context, Some("a.test")).await.0.is_ok());
        assert!(shake(&lax, &context, Some("a.test")).await.0.unwrap().1.resumed, "{version:?}");
        let strict = build(asking(&root, root.validation(), 0, version));
        let (refused, _) = shake(&strict, &context, Some("a.test")).await;
        assert!(matches!(refused, Err(Failure::NoCertificate)), "{version:?} {refused:?}");
        // Nor where the ticket could be opened.
        let shape = Shape { tickets: lax.shape.tickets.clone(), ..strict.shape };
        let identities = lax.identities().map(|identity| Presented::new(identity, &shape).unwrap()).collect();
        let strict = ServerContext { shape, identities, ..strict };
        assert!(shake(&lax, &context, Some("a.test")).await.0.is_ok());
        let (refused, _) = shake(&strict, &context, Some("a.test")).await;
        assert!(matches!(refused, Err(Failure::NoCertificate)), "{version:?} {refused:?}");
    }
}
