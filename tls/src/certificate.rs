//! What a certificate says (RFC 5280), in the spelling in which Envoy's logs, headers and matchers show it.
//! It must not know whether anybody trusts it.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use base64::Engine as _;
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use crate::Refused;
use crate::names;

/// The facts of one certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Certificate {
    /// RFC 2253: `CN=a,O=b`.
    pub subject: String,
    pub issuer: String,
    /// The last common name of the subject; `None` where it has none.
    pub common_name: Option<String>,
    /// Lower-case hex.
    pub serial: String,
    /// Lower-case hex of the DER.
    pub sha256: String,
    pub sha1: String,
    /// SHA-256 of the public key with its algorithm.
    pub spki_sha256: [u8; 32],
    pub sans: Vec<San>,
    pub valid_from: Option<SystemTime>,
    pub valid_until: Option<SystemTime>,
    pub key: KeyKind,
    /// `basicConstraints` says so.
    pub is_ca: bool,
    /// What the key may be used for, where the certificate says.
    pub key_usage: Option<KeyUsage>,
    /// It asks for a stapled OCSP response (RFC 7633).
    pub must_staple: bool,
}

/// The kind of a public key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KeyKind {
    /// Bits of the modulus.
    Rsa(usize),
    /// Bits of the curve: 256, 384 or 521.
    Ecdsa(usize),
    #[default]
    Other,
}

/// The bits of `keyUsage` that somebody asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyUsage {
    pub digital_signature: bool,
    pub key_encipherment: bool,
    /// `keyCertSign` or `cRLSign`.
    pub signs_for_others: bool,
}

/// A subject alternative name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct San {
    pub kind: SanKind,
    /// All of its bytes; an address as text.
    pub value: Vec<u8>,
}

/// The kinds of names that matchers can ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SanKind {
    Email,
    Dns,
    Uri,
    Ip,
    /// By its object identifier, dotted.
    Other(String),
}

impl San {
    /// As text; what is no UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.value).into_owned()
    }
}

impl Certificate {
    /// Reads a certificate.
    ///
    /// # Errors
    /// It is no X.509 certificate.
    pub fn parse(der: &[u8]) -> Result<Self, Refused> {
        let (rest, x509) = X509Certificate::from_der(der).map_err(|_| Refused::new("is not an X.509 certificate"))?;
        if !rest.is_empty() {
            return Err(Refused::new("has bytes after the certificate"));
        }
        let spki = digest::digest(&digest::SHA256, x509.public_key().raw);
        Ok(Self {
            subject: names::rfc2253(x509.subject()),
            issuer: names::rfc2253(x509.issuer()),
            common_name: x509
                .subject()
                .iter_common_name()
                .last()
                .and_then(|name| name.as_str().ok())
                .map(str::to_owned),
            serial: serial(&x509),
            sha256: hex(digest::digest(&digest::SHA256, der).as_ref()),
            sha1: hex(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, der).as_ref()),
            spki_sha256: spki.as_ref().try_into().unwrap_or_default(),
            sans: sans(&x509),
            valid_from: time(x509.validity().not_before),
            valid_until: time(x509.validity().not_after),
            key: key_kind(&x509),
            is_ca: x509.is_ca(),
            key_usage: x509.key_usage().ok().flatten().map(|usage| KeyUsage {
                digital_signature: usage.value.digital_signature(),
                key_encipherment: usage.value.key_encipherment(),
                signs_for_others: usage.value.key_cert_sign() || usage.value.crl_sign(),
            }),
            must_staple: must_staple(&x509),
        })
    }

    /// The values of its names of one kind, as text; of other names, whatever their identifier.
    pub fn sans_of<'a>(&'a self, kind: &'a SanKind) -> impl Iterator<Item = String> + 'a {
        self.values_of(kind).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// The same with all their bytes.
    pub fn values_of<'a>(&'a self, kind: &'a SanKind) -> impl Iterator<Item = &'a [u8]> + 'a {
        let same = move |san: &&San| match (&san.kind, kind) {
            (SanKind::Other(_), SanKind::Other(_)) => true,
            (one, other) => one == other,
        };
        self.sans.iter().filter(same).map(|san| san.value.as_slice())
    }

    /// Whether it is for this address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.sans.iter().any(|san| san.kind == SanKind::Ip && san.value == address.to_string().as_bytes())
    }

    /// Whole seconds until it expires; less than none where it has.
    pub fn seconds_until_expiration(&self, now: SystemTime) -> i64 {
        let Some(until) = self.valid_until else { return i64::MAX };
        match until.duration_since(now) {
            Ok(left) => i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            Err(past) => -i64::try_from(past.duration().as_secs()).unwrap_or(i64::MAX),
        }
    }
}

/// The certificate as PEM (RFC 7468).
pub fn pem(der: &CertificateDer<'_>) -> String {
    let mut text = String::with_capacity(der.len() * 4 / 3 + 80);
    text.push_str("-----BEGIN CERTIFICATE-----\n");
    let encoded = base64::engine::general_purpose::STANDARD.encode(der);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// The certificate as PEM in which what a header or a URL cannot carry is escaped, as Envoy escapes it.
pub fn url_encoded_pem(der: &CertificateDer<'_>) -> String {
    let mut escaped = String::with_capacity(der.len() * 3 / 2);
    for character in pem(der).chars() {
        match character {
            '\n' => escaped.push_str("%0A"),
            ' ' => escaped.push_str("%20"),
            '+' => escaped.push_str("%2B"),
            '/' => escaped.push_str("%2F"),
            '=' => escaped.push_str("%3D"),
            plain => escaped.push(plain),
        }
    }
    escaped
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn serial(x509: &X509Certificate<'_>) -> String {
    let bytes = x509.raw_serial();
    let significant = bytes.iter().position(|byte| *byte != 0).map_or(&bytes[..0], |first| &bytes[first..]);
    if significant.is_empty() { "0".to_owned() } else { hex(significant) }
}

fn time(time: ASN1Time) -> Option<SystemTime> {
    let seconds = time.timestamp();
    match u64::try_from(seconds) {
        Ok(after) => UNIX_EPOCH.checked_add(Duration::from_secs(after)),
        Err(_) => UNIX_EPOCH.checked_sub(Duration::from_secs(seconds.unsigned_abs())),
    }
}

fn key_kind(x509: &X509Certificate<'_>) -> KeyKind {
    use x509_parser::public_key::PublicKey;
    match x509.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => KeyKind::Rsa(key.key_size()),
        Ok(PublicKey::EC(point)) => KeyKind::Ecdsa(match point.key_size() {
            528 => 521,
            bits => bits,
        }),
        _ => KeyKind::Other,
    }
}

fn sans(x509: &X509Certificate<'_>) -> Vec<San> {
    let Ok(Some(names)) = x509.subject_alternative_name() else { return Vec::new() };
    names.value.general_names.iter().filter_map(san).collect()
}

fn san(name: &GeneralName<'_>) -> Option<San> {
    let (kind, value) = match name {
        GeneralName::RFC822Name(value) => (SanKind::Email, value.as_bytes().to_vec()),
        GeneralName::DNSName(value) => (SanKind::Dns, value.as_bytes().to_vec()),
        GeneralName::URI(value) => (SanKind::Uri, value.as_bytes().to_vec()),
        GeneralName::IPAddress(bytes) => (SanKind::Ip, address(bytes)?.to_string().into_bytes()),
        GeneralName::OtherName(oid, value) => (SanKind::Other(oid.to_id_string()), other_name(value)),
        _ => return None,
    };
    Some(San { kind, value })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The content of the string within `[0] EXPLICIT`.
fn other_name(value: &[u8]) -> Vec<u8> {
    use x509_parser::der_parser::asn1_rs::Any;
    let Ok((_, outer)) = Any::from_der(value) else { return Vec::new() };
    match Any::from_der(outer.data) {
        Ok((_, inner)) if outer.header.is_constructed() => inner.data.to_vec(),
        _ => outer.data.to_vec(),
    }
}

/// `id-pe-tlsfeature` with `status_request`.
fn must_staple(x509: &X509Certificate<'_>) -> bool {
    const TLS_FEATURE: &str = "1.3.6.1.5.5.7.1.24";
    x509.extensions().iter().any(|extension| {
        extension.oid.to_id_string() == TLS_FEATURE
            && matches!(extension.parsed_extension(), ParsedExtension::UnsupportedExtension { .. })
            && extension.value.windows(3).any(|part| part == [0x02, 0x01, 0x05])
    })
}

#[cfg(test)]
mod tests;
