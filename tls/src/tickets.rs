//! Session tickets: their keys, and how they are sealed. Keys are derived for each context, so that a ticket of another validation
//! or of other roots cannot be opened; and a ticket says when it was sealed, so that it ends when its time is over, whatever
//! the client makes of the lifetime that it is told. It must not know what else a ticket holds.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, rand};
use parking_lot::RwLock;
use rustls::server::ProducesTickets;

use crate::Refused;

/// Bytes of a key as it is configured.
pub const KEY_BYTES: usize = 80;

/// Where no keys are configured a new one is made this often; the one before still opens tickets.
const ROTATION: Duration = Duration::from_secs(12 * 60 * 60);

const NAME_BYTES: usize = 16;

/// Of the time at which a ticket was sealed: seconds since 1970, the highest byte first.
const TIME_BYTES: usize = 8;

/// Where keys come from.
#[derive(Clone, Default)]
pub enum TicketKeys {
    /// Made up, and changed from time to time.
    #[default]
    Random,
    /// The first seals, all open. Others that have them can open what is sealed here.
    Given(Vec<[u8; KEY_BYTES]>),
}

impl std::fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Random => f.write_str("Random"),
            Self::Given(keys) => write!(f, "Given({} keys)", keys.len()),
        }
    }
}

impl TicketKeys {
    /// Takes keys as they are configured.
    ///
    /// # Errors
    /// There is none, or one is not 80 bytes long.
    pub fn given(keys: impl IntoIterator<Item = Vec<u8>>) -> Result<Self, Refused> {
        let mut given = Vec::new();
        for key in keys {
            let length = key.len();
            let key = key.try_into().map_err(|_| {
                Refused::new(format!(
                    "Incorrect TLS session ticket key length. Length {length}, expected length {KEY_BYTES}."
                ))
            })?;
            given.push(key);
        }
        if given.is_empty() { Err(Refused::new("there is no session ticket key")) } else { Ok(Self::Given(given)) }
    }
}

/// Seals and opens tickets of one context.
pub(crate) struct Tickets {
    lifetime: u32,
    digest: [u8; 32],
    keys: RwLock<Keys>,
    rotates: bool,
}

struct Keys {
    /// The first seals.
    all: Vec<Key>,
    made: Instant,
}

struct Key {
    name: [u8; NAME_BYTES],
    seal: LessSafeKey,
}

impl Tickets {
    /// `digest` tells contexts apart; `lifetime` is in seconds.
    pub(crate) fn new(keys: &TicketKeys, digest: [u8; 32], lifetime: u32) -> Result<Self, Refused> {
        let all = match keys {
            TicketKeys::Random => vec![random(&digest)?],
            TicketKeys::Given(given) => given.iter().map(|key| derive(key, &digest)).collect::<Result<_, _>>()?,
        };
        let rotates = matches!(keys, TicketKeys::Random);
        Ok(Self { lifetime, digest, keys: RwLock::new(Keys { all, made: Instant::now() }), rotates })
    }

    fn seal(&self, plain: &[u8], now: SystemTime) -> Option<Vec<u8>> {
        let keys = self.keys.read();
        let key = keys.all.first()?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut sealed = [&seconds(now)?.to_be_bytes(), plain].concat();
        let unique = Nonce::assume_unique_for_key(nonce);
        key.seal.seal_in_place_append_tag(unique, Aad::from(key.name), &mut sealed).ok()?;
        Some([key.name.as_slice(), nonce.as_slice(), sealed.as_slice()].concat())
    }

    fn open(&self, ticket: &[u8], now: SystemTime) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME_BYTES)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let keys = self.keys.read();
        let key = keys.all.iter().find(|key| key.name == name)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = key.seal.open_in_place(nonce, Aad::from(key.name), &mut sealed).ok()?;
        let (time, plain) = plain.split_at_checked(TIME_BYTES)?;
        // Another process may have sealed it, whose clock goes before this one's.
        let age = seconds(now)?.saturating_sub(u64::from_be_bytes(time.try_into().ok()?));
        (age < u64::from(self.lifetime)).then(|| plain.to_vec())
    }

    fn rotate(&self) {
        if !self.rotates || self.keys.read().made.elapsed() < ROTATION {
            return;
        }
        let mut keys = self.keys.write();
        if keys.made.elapsed() >= ROTATION
            && let Ok(key) = random(&self.digest)
        {
            keys.all.insert(0, key);
            keys.all.truncate(2);
            keys.made = Instant::now();
        }
    }
}

fn seconds(time: SystemTime) -> Option<u64> {
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

fn random(digest: &[u8; 32]) -> Result<Key, Refused> {
    let mut secret = [0; KEY_BYTES];
    rand::fill(&mut secret).map_err(|_| Refused::new("the system gives no random bytes"))?;
    derive(&secret, digest)
}

fn derive(secret: &[u8; KEY_BYTES], digest: &[u8; 32]) -> Result<Key, Refused> {
    let failed = |_| Refused::new("cannot derive a session ticket key");
    let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, digest).extract(secret);
    let mut name = [0; NAME_BYTES];
    let info = [b"tidegate ticket name".as_slice()];
    derived.expand(&info, Length(NAME_BYTES)).and_then(|okm| okm.fill(&mut name)).map_err(failed)?;
    let mut key = [0; 32];
    let info = [b"tidegate ticket key".as_slice()];
    derived.expand(&info, Length(32)).and_then(|okm| okm.fill(&mut key)).map_err(failed)?;
    let seal = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).map_err(failed)?);
    Ok(Key { name, seal })
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.lifetime
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.rotate();
        self.seal(plain, SystemTime::now())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket, SystemTime::now())
    }
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tickets").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets(keys: &TicketKeys, digest: u8) -> Tickets {
        Tickets::new(keys, [digest; 32], 7200).unwrap()
    }

    #[test]
    fn a_ticket_opens_with_its_key_and_for_its_context_alone() {
        let given = |bytes: &[u8]| TicketKeys::given(bytes.iter().map(|byte| vec![*byte; KEY_BYTES])).unwrap();
        let first = tickets(&given(&[1]), 0);
        let ticket = first.encrypt(b"session").unwrap();
        assert_eq!(first.decrypt(&ticket).as_deref(), Some(b"session".as_slice()));
        // Another process with the key among its own opens it.
        assert!(tickets(&given(&[2, 1]), 0).decrypt(&ticket).is_some());
        assert!(tickets(&given(&[2]), 0).decrypt(&ticket).is_none());
        assert!(tickets(&given(&[1]), 1).decrypt(&ticket).is_none(), "other roots or names");
        let mut broken = ticket.clone();
        *broken.last_mut().unwrap() ^= 1;
        assert!(first.decrypt(&broken).is_none());
        assert!(first.decrypt(&ticket[..20]).is_none());
    }

    #[test]
    fn a_ticket_opens_for_its_lifetime() {
        let tickets = tickets(&TicketKeys::Random, 0);
        let then = SystemTime::now();
        let ticket = tickets.seal(b"session", then).unwrap();
        let after = |seconds| tickets.open(&ticket, then + Duration::from_secs(seconds)).is_some();
        assert_eq!((after(0), after(7199), after(7200)), (true, true, false));
        assert!(tickets.open(&ticket, then - Duration::from_secs(60)).is_some(), "another's clock");
    }

    #[test]
    fn keys_of_another_length_are_refused() {
        let refused = TicketKeys::given([vec![0; 79]]).unwrap_err();
        assert_eq!(refused.0, "Incorrect TLS session ticket key length. Length 79, expected length 80.");
    }
}
