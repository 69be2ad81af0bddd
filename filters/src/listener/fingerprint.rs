//! What a ClientHello offers, as one text by which clients of the same make are known: JA3 and JA4
//! (<https://github.com/FoxIO-LLC/ja4>). It must not know who asks.

use aws_lc_rs::digest::{SHA256, digest};
use tidegate_tls::certificate::hex;

use super::client_hello::Reader;
use super::md5::md5;

/// The lists of a ClientHello. As in Envoy the values that stand for nothing (GREASE, RFC 8701) are left out of all but groups
/// and signature algorithms.
#[derive(Debug, Default)]
pub(super) struct Offer<'a> {
    legacy_version: u16,
    /// The best one of `supported_versions`, else the legacy one.
    version: u16,
    ciphers: Vec<u16>,
    extensions: Vec<u16>,
    groups: Vec<u16>,
    point_formats: &'a [u8],
    signature_algorithms: Vec<u16>,
    /// The first protocol.
    protocol: &'a [u8],
}

impl<'a> Offer<'a> {
    /// Reads the body of a ClientHello; of one that ends too early what is there.
    pub(super) fn read(body: &'a [u8]) -> Self {
        let mut offer = Self::default();
        let _ends_early = offer.fill(body);
        offer
    }

    fn fill(&mut self, body: &'a [u8]) -> Option<()> {
        const GROUPS: u16 = 10;
        const POINT_FORMATS: u16 = 11;
        const SIGNATURE_ALGORITHMS: u16 = 13;
        const PROTOCOLS: u16 = 16;
        const VERSIONS: u16 = 43;
        let mut reader = Reader(body);
        self.legacy_version = reader.u16()?;
        self.version = self.legacy_version;
        reader.take(32)?;
        let _session = reader.short()?;
        self.ciphers = meaningful(reader.long()?);
        let _compressions = reader.short()?;
        let mut extensions = Reader(reader.long()?);
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let data = extensions.long()?;
            if !is_grease(kind) {
                self.extensions.push(kind);
            }
            let mut data = Reader(data);
            match kind {
                GROUPS => self.groups = numbers(data.long().unwrap_or_default()),
                POINT_FORMATS => self.point_formats = data.short().unwrap_or_default(),
                SIGNATURE_ALGORITHMS => self.signature_algorithms = numbers(data.long().unwrap_or_default()),
                PROTOCOLS => {
                    let list = data.long().unwrap_or_default();
                    self.protocol = Reader(list).short().unwrap_or_default();
                }
                VERSIONS => {
                    let versions = meaningful(data.short().unwrap_or_default());
                    self.version = versions.into_iter().max().unwrap_or(self.version);
                }
                _ => {}
            }
        }
        Some(())
    }

    /// Version, cipher suites, extensions, groups and point formats in their order.
    pub(super) fn ja3(&self) -> String {
        let formats: Vec<u16> = self.point_formats.iter().copied().map(u16::from).collect();
        let lists = [&self.ciphers, &self.extensions, &self.groups, &formats];
        let lists = lists.map(|list| list.iter().map(u16::to_string).collect::<Vec<_>>().join("-"));
        hex(&md5(format!("{},{}", self.legacy_version, lists.join(",")).as_bytes()))
    }

    /// Counts in clear text, then the sorted cipher suites and extensions.
    pub(super) fn ja4(&self) -> String {
        const NAMES: [u16; 2] = [0, 16];
        let version = match self.version {
            0x0304 => "13",
            0x0303 => "12",
            0x0302 => "11",
            0x0301 => "10",
            _ => "00",
        };
        let named = if self.extensions.contains(&NAMES[0]) { 'd' } else { 'i' };
        let (ciphers, extensions) = (self.ciphers.len().min(99), self.extensions.len().min(99));
        let protocol = shortened(self.protocol);
        let mut sorted = self.ciphers.clone();
        sorted.sort_unstable();
        let ciphers_hash = cut_hash(&listed(&sorted));
        let mut sorted: Vec<u16> = self.extensions.iter().copied().filter(|kind| !NAMES.contains(kind)).collect();
        sorted.sort_unstable();
        let mut text = listed(&sorted);
        if !self.signature_algorithms.is_empty() {
            text.push('_');
            text.push_str(&listed(&self.signature_algorithms));
        }
        format!("t{version}{named}{ciphers:02}{extensions:02}{protocol}_{ciphers_hash}_{}", cut_hash(&text))
    }
}

/// Two bytes each.
fn numbers(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
}

/// The same without GREASE.
fn meaningful(bytes: &[u8]) -> Vec<u16> {
    numbers(bytes).into_iter().filter(|number| !is_grease(*number)).collect()
}

fn is_grease(number: u16) -> bool {
    let [high, low] = number.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}

/// The first and the last letter of a protocol's name, of what is no letter or digit in hex; `00` where there is none.
fn shortened(protocol: &[u8]) -> String {
    match (protocol.first(), protocol.last()) {
        (Some(first), Some(last)) if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() => {
            [*first, *last].map(char::from).iter().collect()
        }
        (Some(first), Some(last)) => format!("{:x}{:x}", first >> 4, last & 0x0f),
        _ => "00".to_owned(),
    }
}

fn listed(numbers: &[u16]) -> String {
    numbers.iter().map(|number| format!("{number:04x}")).collect::<Vec<_>>().join(",")
}

/// The first twelve digits of the SHA-256; zeros of nothing.
fn cut_hash(text: &str) -> String {
    if text.is_empty() {
        return "0".repeat(12);
    }
    let mut digits = hex(digest(&SHA256, text.as_bytes()).as_ref());
    digits.truncate(12);
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_length(size: usize, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&length[4 - size..], body].concat()
    }

    fn bytes(numbers: &[u16]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
    }

    /// The body of a ClientHello; `None`: it has no extensions.
    fn body(version: u16, ciphers: &[u16], extensions: Option<&[(u16, Vec<u8>)]>) -> Vec<u8> {
        let extensions = extensions.map(|extensions| {
            let all = extensions.iter().flat_map(|(kind, data)| [bytes(&[*kind]), with_length(2, data)].concat());
            with_length(2, &all.collect::<Vec<_>>())
        });
        let ciphers = with_length(2, &bytes(ciphers));
        [&bytes(&[version])[..], &[7; 32], &[0], &ciphers, &[1, 0], &extensions.unwrap_or_default()].concat()
    }

    fn protocol(name: &[u8]) -> (u16, Vec<u8>) {
        (16, with_length(2, &with_length(1, name)))
    }

    /// What Envoy 1.40 logged for the same ClientHello.
    #[test]
    fn fingerprints_are_envoys() {
        let usual = [0x1301, 0xc02f];
        let greased = [
            (0x2a2a, Vec::new()),
            (10, with_length(2, &bytes(&[0x3a3a, 29, 23]))),
            (11, with_length(1, &[0])),
            (13, with_length(2, &bytes(&[0x4a4a, 0x0804, 0x0403]))),
            (43, with_length(1, &bytes(&[0x5a5a, 0x0304, 0x0303]))),
            (0x6a6a, vec![0]),
            (16, with_length(2, &[with_length(1, b"ZZ"), with_length(1, b"h2")].concat())),
        ];
        let name = with_length(2, &[&[0][..], &with_length(2, b"a.b")].concat());
        for (body, ja3, ja4) in [
            (
                body(0x0303, &[0x0a0a, 0xc02f, 0x1a1a, 0x009c], Some(&greased)),
                "c58750baca9b604c0414d4e761f6b51d",
                "t13i0205ZZ_08dfa304a768_b4e17c8ccd65",
            ),
            (body(0x0303, &usual, None), "6ac28f635e78b6e59638f7a1e035f458", "t12i020000_c1929292aa6b_000000000000"),
            (
                body(0x0303, &usual, Some(&[(0, name), protocol(b"http/1.1")])),
                "49cbdc1ae4567ba59ab722a6eed4184d",
                "t12d0202h1_c1929292aa6b_000000000000",
            ),
            (
                body(0x0303, &usual, Some(&[(13, with_length(2, &[]))])),
                "e790f7548e8af1400b303f22ab9f4511",
                "t12i020100_c1929292aa6b_06540eb5c95f",
            ),
            (
                body(0x0303, &usual, Some(&[(43, with_length(1, &bytes(&[0x0303, 0x0304])))])),
                "b46c6295f2988c92872ed92441a25ba0",
                "t13i020100_c1929292aa6b_b9a491fefe05",
            ),
            (
                body(0x0302, &usual, Some(&[(43, with_length(1, &bytes(&[0x0303])))])),
                "b5acbe7ae2289c0a6bcf7afdb0a5474f",
                "t12i020100_c1929292aa6b_b9a491fefe05",
            ),
            (body(0x0301, &usual, None), "8dd34b6e2265fbc95a17799b0fa00209", "t10i020000_c1929292aa6b_000000000000"),
            (
                body(0x0303, &usual, Some(&[protocol(&[0xc3, 0xa9])])),
                "361b5573bf5e601ff48f26f08b28093e",
                "t12i0201c9_c1929292aa6b_000000000000",
            ),
            (
                body(0x0303, &usual, Some(&[protocol(b"-a")])),
                "361b5573bf5e601ff48f26f08b28093e",
                "t12i020121_c1929292aa6b_000000000000",
            ),
            (body(0x0303, &[0x0a0a], None), "bddda940f9963577c41d7c28b1a5f65f", "t12i000000_000000000000_000000000000"),
        ] {
            let offer = Offer::read(&body);
            assert_eq!((offer.ja3().as_str(), offer.ja4().as_str()), (ja3, ja4));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..120)) {
            let offer = Offer::read(&bytes);
            offer.ja3();
            offer.ja4();
        }
    }
}
