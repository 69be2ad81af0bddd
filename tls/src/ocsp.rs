//! A stapled OCSP response (RFC 6960 section 4.2), read as far as deciding whether to staple it needs.
//! It must not know certificates or verify signatures: clients do.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::der_parser::asn1_rs::{Any, FromDer, GeneralizedTime, Tag};

use crate::Refused;
use crate::certificate::hex;

/// What a response says of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OcspResponse {
    /// Lower-case hex.
    serial: String,
    this_update: SystemTime,
    next_update: Option<SystemTime>,
}

impl OcspResponse {
    /// Reads a successful basic response about one certificate.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(der: &[u8]) -> Result<Self, Refused> {
        parse(der).ok_or_else(|| Refused::new("OCSP response is not a successful basic response about one certificate"))
    }

    /// One that ends at this time, about nobody.
    #[cfg(test)]
    pub(crate) fn until(next_update: SystemTime) -> Self {
        Self { serial: String::new(), this_update: UNIX_EPOCH, next_update: Some(next_update) }
    }

    /// Whether it is about the certificate of this serial, in lower-case hex.
    pub fn is_about(&self, serial: &str) -> bool {
        self.serial == serial
    }

    /// Until when it counts; none: until another one comes.
    pub fn valid_until(&self) -> Option<SystemTime> {
        self.next_update
    }

    /// Whether it is not valid any more, or not yet.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.this_update > now || self.next_update.is_none_or(|next| next <= now)
    }

    /// Whole seconds until it expires; none where it has.
    pub fn seconds_until_expiration(&self, now: SystemTime) -> u64 {
        self.next_update.and_then(|next| next.duration_since(now).ok()).map_or(0, |left| left.as_secs())
    }

    /// From when, and until when.
    pub fn validity(&self) -> (SystemTime, Option<SystemTime>) {
        (self.this_update, self.next_update)
    }
}

fn parse(der: &[u8]) -> Option<OcspResponse> {
    const BASIC: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x01];
    let (status, rest) = next(whole(der, Tag::Sequence)?)?;
    if status.tag() != Tag::Enumerated || status.data != [0] {
        return None;
    }
    let (explicit, _) = next(rest)?;
    let (kind, rest) = next(whole(explicit.data, Tag::Sequence)?)?;
    let (octets, _) = next(rest)?;
    if kind.tag() != Tag::Oid || kind.data != BASIC || octets.tag() != Tag::OctetString {
        return None;
    }
    let (data, _) = next(whole(octets.data, Tag::Sequence)?)?;
    // Version ([0], optional), the responder ([1] or [2]), when it was made: then the answers.
    let mut rest = data.data;
    let mut answers = None;
    for _ in 0..4 {
        let (part, after) = next(rest)?;
        rest = after;
        if part.tag() == Tag::Sequence {
            answers = Some(part.data);
            break;
        }
    }
    let (answer, others) = next(answers?)?;
    if answer.tag() != Tag::Sequence || !others.is_empty() {
        return None;
    }
    single(answer.data)
}

fn single(answer: &[u8]) -> Option<OcspResponse> {
    let (id, rest) = next(answer)?;
    let (_, after_algorithm) = next(id.data)?;
    let (_, after_name) = next(after_algorithm)?;
    let (_, after_key) = next(after_name)?;
    let (serial, _) = next(after_key)?;
    let (_status, rest) = next(rest)?;
    let (this_update, rest) = next(rest)?;
    let next_update = match next(rest) {
        Some((part, _)) if part.tag() == Tag(0) => time(&next(part.data)?.0),
        _ => None,
    };
    let significant = serial.data.iter().position(|byte| *byte != 0).unwrap_or(serial.data.len());
    Some(OcspResponse { serial: hex(&serial.data[significant..]), this_update: time(&this_update)?, next_update })
}

fn next(data: &[u8]) -> Option<(Any<'_>, &[u8])> {
    Any::from_der(data).ok().map(|(rest, any)| (any, rest))
}

fn whole(data: &[u8], tag: Tag) -> Option<&[u8]> {
    let (any, _) = next(data)?;
    (any.tag() == tag).then_some(any.data)
}

fn time(any: &Any<'_>) -> Option<SystemTime> {
    let seconds = GeneralizedTime::try_from(any.clone()).ok()?.utc_datetime().ok()?.unix_timestamp();
    Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?))
}
