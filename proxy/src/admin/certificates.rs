//! `/certs`: `envoy.admin.v3.Certificates`. Expired ones are shown, as long as they are used.

use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};
use tidegate_tls::certificate::{Certificate, San, SanKind};
use tidegate_tls::ocsp::OcspResponse;

use super::Call;
use super::reply::Reply;
use super::state::{ContextCertificates, PlacedCertificate};

pub(super) fn certificates(call: &Call<'_>) -> Reply {
    let now = SystemTime::now();
    let contexts = call.state.certificates();
    let shown: Vec<Value> = contexts.iter().map(|context| shown(context, now)).collect();
    Reply::json(&json!({"certificates": shown}))
}

fn shown(context: &ContextCertificates, now: SystemTime) -> Value {
    let all = |certificates: &[PlacedCertificate]| -> Vec<Value> {
        certificates.iter().map(|placed| details(placed, now)).collect()
    };
    json!({"ca_cert": all(&context.roots), "cert_chain": all(&context.chain)})
}

fn details(placed: &PlacedCertificate, now: SystemTime) -> Value {
    let Certificate { serial, sans, valid_from, valid_until, .. } = &placed.certificate;
    let days = (placed.certificate.seconds_until_expiration(now) / 86_400).max(0);
    let mut details = json!({
        "path": placed.path,
        "serial_number": serial,
        "subject_alt_names": sans.iter().filter_map(san).collect::<Vec<_>>(),
        "days_until_expiration": days.to_string(),
        "valid_from": valid_from.map(time),
        "expiration_time": valid_until.map(time),
    });
    if let Some(response) = &placed.ocsp {
        details["ocsp_details"] = ocsp(response);
    }
    details
}

fn ocsp(response: &OcspResponse) -> Value {
    let (from, until) = response.validity();
    json!({"valid_from": time(from), "expiration": until.map(time)})
}

fn san(san: &San) -> Option<Value> {
    match san.kind {
        SanKind::Dns => Some(json!({"dns": san.text()})),
        SanKind::Uri => Some(json!({"uri": san.text()})),
        SanKind::Ip => Some(json!({"ip_address": san.text()})),
        SanKind::Email | SanKind::Other(_) => None,
    }
}

fn time(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true)
}
