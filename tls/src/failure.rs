//! Why a handshake failed: whose fault it is, which of Envoy's stats counts it, and how Envoy words it
//! (`%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`). It must not know who shows it.

use std::io;

use rustls::{AlertDescription, Error, InvalidMessage, PeerIncompatible};

use crate::validation::Reason;

/// How a handshake ended without a connection.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The peer's certificate was not accepted.
    #[error("{0}")]
    Verify(Reason),
    /// The peer had to present a certificate, and did not.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// The client named no host, and has to (`require_sni`).
    #[error("the client named no host")]
    NoServerName,
    /// A stapled response is demanded that is not there or has expired.
    #[error("there is no valid OCSP response to staple")]
    NoStaple,
    /// The client speaks HTTP without TLS; to a proxy, where it began with CONNECT.
    #[error("the client speaks HTTP without TLS")]
    Http { connect: bool },
    /// What should be a ClientHello is none.
    #[error("{0}")]
    NoHello(Error),
    /// The host found nothing in the ClientHello to agree on.
    #[error("the host agrees to nothing that it was offered")]
    HelloRefused,
    /// No host can be asked for by this name.
    #[error("TLS cannot name the host '{0}' (RFC 6066 section 3)")]
    Unnameable(String),
    /// What TLS itself says.
    #[error("{0}")]
    Protocol(Error),
    /// The connection ended or failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Failure {
    /// What a handshake's end is, with the verifier's reason where it gave one.
    pub(crate) fn of(error: io::Error, reason: Option<Reason>) -> Self {
        if let Some(reason) = reason {
            return Self::Verify(reason);
        }
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        match inner {
            Some(Error::NoCertificatesPresented) => Self::NoCertificate,
            Some(inner) => Self::Protocol(inner.clone()),
            None => Self::Io(error),
        }
    }

    /// The same of one that ended before there was a ClientHello; `first` is how the client began.
    pub(crate) fn before_hello(error: io::Error, first: &[u8]) -> Self {
        match Self::of(error, None) {
            Self::Protocol(Error::InvalidMessage(message)) => match first {
                // Those that BoringSSL knows.
                [b'G', b'E', b'T', b' ', ..] | [b'P', b'U', b'T', b' ', ..] | b"POST " | b"HEAD " => {
                    Self::Http { connect: false }
                }
                b"CONNE" => Self::Http { connect: true },
                [0x16, 0x03, ..] => Self::NoHello(Error::InvalidMessage(message)),
                _ => Self::Protocol(Error::InvalidMessage(message)),
            },
            other => other,
        }
    }

    /// Whether `ssl.connection_error` counts it: what went wrong within TLS, and is not counted by a stat of its own.
    pub fn is_connection_error(&self) -> bool {
        match self {
            Self::Protocol(_) | Self::NoServerName | Self::NoStaple => true,
            Self::Http { .. } | Self::NoHello(_) | Self::HelloRefused => true,
            Self::Verify(_) | Self::NoCertificate | Self::Unnameable(_) | Self::Io(_) => false,
        }
    }

    /// As Envoy words it; empty where the peer only went away.
    pub fn reason(&self) -> String {
        let (code, name) = match self {
            Self::Verify(reason) => {
                return format!(
                    "TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:{reason}:TLS_error_end"
                );
            }
            Self::NoCertificate => {
                (268_435_648, "PEER_DID_NOT_RETURN_A_CERTIFICATE:peer did not provide required client certificate")
            }
            Self::NoServerName => (268_435_588, "CLIENTHELLO_TLSEXT"),
            Self::NoStaple => (268_435_589, "CONNECTION_REJECTED"),
            Self::Http { connect: false } => (268_435_612, "HTTP_REQUEST"),
            Self::Http { connect: true } => (268_435_611, "HTTPS_PROXY_REQUEST"),
            Self::NoHello(_) => (268_435_587, "CLIENTHELLO_PARSE_FAILED"),
            Self::HelloRefused => (
                268_436_496,
                "SSLV3_ALERT_HANDSHAKE_FAILURE|268435610:SSL routines:OPENSSL_internal:HANDSHAKE_FAILURE_ON_CLIENT_HELLO",
            ),
            Self::Protocol(error) => match boring(error) {
                Some(known) => known,
                None => return format!("TLS_error:|{error}:TLS_error_end"),
            },
            Self::Unnameable(_) => return self.to_string(),
            Self::Io(_) => return String::new(),
        };
        format!("TLS_error:|{code}:SSL routines:OPENSSL_internal:{name}:TLS_error_end")
    }
}

/// BoringSSL's number and name of the same error.
fn boring(error: &Error) -> Option<(u32, &'static str)> {
    Some(match error {
        Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            (268_435_703, "WRONG_VERSION_NUMBER")
        }
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        ) => (268_435_696, "UNSUPPORTED_PROTOCOL"),
        Error::InvalidMessage(_) => (268_435_593, "DECODE_ERROR"),
        Error::InappropriateMessage { .. } => (268_435_681, "UNEXPECTED_RECORD"),
        Error::InappropriateHandshakeMessage { .. } => (268_435_679, "UNEXPECTED_MESSAGE"),
        Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon) => (268_435_640, "NO_SHARED_CIPHER"),
        Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon) => (268_435_722, "NO_SHARED_GROUP"),
        Error::PeerIncompatible(PeerIncompatible::NoSignatureSchemesInCommon) => {
            (268_435_709, "NO_COMMON_SIGNATURE_ALGORITHMS")
        }
        Error::AlertReceived(alert) => return alert_received(*alert),
        Error::DecryptError => (268_435_595, "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"),
        _ => return None,
    })
}

/// 268436456 and the alert's number (RFC 8446 section 6).
fn alert_received(alert: AlertDescription) -> Option<(u32, &'static str)> {
    let name = match alert {
        AlertDescription::HandshakeFailure => "SSLV3_ALERT_HANDSHAKE_FAILURE",
        AlertDescription::BadCertificate => "SSLV3_ALERT_BAD_CERTIFICATE",
        AlertDescription::UnsupportedCertificate => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        AlertDescription::CertificateRevoked => "SSLV3_ALERT_CERTIFICATE_REVOKED",
        AlertDescription::CertificateExpired => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        AlertDescription::CertificateUnknown => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        AlertDescription::IllegalParameter => "SSLV3_ALERT_ILLEGAL_PARAMETER",
        AlertDescription::UnexpectedMessage => "SSLV3_ALERT_UNEXPECTED_MESSAGE",
        AlertDescription::BadRecordMac => "SSLV3_ALERT_BAD_RECORD_MAC",
        AlertDescription::UnknownCA => "TLSV1_ALERT_UNKNOWN_CA",
        AlertDescription::AccessDenied => "TLSV1_ALERT_ACCESS_DENIED",
        AlertDescription::DecodeError => "TLSV1_ALERT_DECODE_ERROR",
        AlertDescription::DecryptError => "TLSV1_ALERT_DECRYPT_ERROR",
        AlertDescription::ProtocolVersion => "TLSV1_ALERT_PROTOCOL_VERSION",
        AlertDescription::InsufficientSecurity => "TLSV1_ALERT_INSUFFICIENT_SECURITY",
        AlertDescription::InternalError => "TLSV1_ALERT_INTERNAL_ERROR",
        AlertDescription::UserCanceled => "TLSV1_ALERT_USER_CANCELLED",
        AlertDescription::UnrecognisedName => "TLSV1_ALERT_UNRECOGNIZED_NAME",
        AlertDescription::UnknownPSKIdentity => "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY",
        AlertDescription::CertificateRequired => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
        AlertDescription::NoApplicationProtocol => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
        _ => return None,
    };
    Some((268_436_456 + u32::from(u8::from(alert)), name))
}
