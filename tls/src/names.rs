//! Distinguished names as RFC 2253 spells them, in the way of OpenSSL's `XN_FLAG_RFC2253`, which Envoy uses.

use std::fmt::Write as _;

use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use crate::certificate::hex;

/// The last part first, parts separated by a comma, those of one set by a plus.
pub(crate) fn rfc2253(name: &X509Name<'_>) -> String {
    let mut sets: Vec<String> = name
        .iter_rdn()
        .map(|set| {
            let mut parts: Vec<String> = set.iter().map(attribute).collect();
            parts.reverse();
            parts.join("+")
        })
        .collect();
    sets.reverse();
    sets.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let value = attribute.attr_value();
    match short_name(&oid) {
        Some(name) => match text(value.tag(), value.data) {
            Some(text) => format!("{name}={}", escaped(&text)),
            None => format!("{name}={}", dumped(attribute)),
        },
        // What has no name is shown as it is encoded.
        None => format!("{oid}={}", dumped(attribute)),
    }
}

fn dumped(attribute: &AttributeTypeAndValue<'_>) -> String {
    let value = attribute.attr_value();
    let mut der = vec![u8::try_from(value.tag().0).unwrap_or(0)];
    let length = value.data.len();
    match length {
        0..=127 => der.push(length as u8),
        128..=255 => der.extend([0x81, length as u8]),
        _ => der.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    der.extend(value.data);
    format!("#{}", hex(&der).to_uppercase())
}

/// As UTF-8; `None` for what is no string.
fn text(tag: Tag, data: &[u8]) -> Option<Vec<u8>> {
    match tag {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString => {
            Some(data.to_vec())
        }
        Tag::T61String => Some(data.iter().map(|byte| char::from(*byte)).collect::<String>().into_bytes()),
        Tag::BmpString => {
            let units = data.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            Some(char::decode_utf16(units).map(|unit| unit.unwrap_or('\u{fffd}')).collect::<String>().into_bytes())
        }
        _ => None,
    }
}

fn escaped(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for (index, byte) in text.iter().enumerate() {
        let (first, last) = (index == 0, index + 1 == text.len());
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                out.push('\\');
                out.push(char::from(*byte));
            }
            b'#' if first => out.push_str("\\#"),
            b' ' if first || last => out.push_str("\\ "),
            // Writing to a string cannot fail.
            0..=0x1f | 0x7f..=0xff => {
                let _ = write!(out, "\\{byte:02X}");
            }
            plain => out.push(char::from(*plain)),
        }
    }
    out
}

fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.13" => "description",
        "2.5.4.15" => "businessCategory",
        "2.5.4.17" => "postalCode",
        "2.5.4.41" => "name",
        "2.5.4.42" => "GN",
        "2.5.4.43" => "initials",
        "2.5.4.44" => "generationQualifier",
        "2.5.4.45" => "x500UniqueIdentifier",
        "2.5.4.46" => "dnQualifier",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "1.2.840.113549.1.9.2" => "unstructuredName",
        "1.3.6.1.4.1.311.60.2.1.1" => "jurisdictionL",
        "1.3.6.1.4.1.311.60.2.1.2" => "jurisdictionST",
        "1.3.6.1.4.1.311.60.2.1.3" => "jurisdictionC",
        _ => return None,
    })
}
