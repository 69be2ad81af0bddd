//! Sessions that are kept for clients of TLS 1.2 without tickets: so many, and each for its time. It must not know what they
//! hold.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::server::StoresServerSessions;

/// How many are kept; the oldest go first.
const MOST: usize = 4096;

/// Sessions of one context. Nothing is held before the first.
#[derive(Debug)]
pub(crate) struct KeptSessions {
    lifetime: Duration,
    sessions: Mutex<Sessions>,
}

#[derive(Debug, Default)]
struct Sessions {
    by_id: HashMap<Vec<u8>, (Vec<u8>, Instant)>,
    /// In the order in which they came; what was taken out is still there.
    order: VecDeque<Vec<u8>>,
}

impl KeptSessions {
    pub(crate) fn new(lifetime: Duration) -> Self {
        Self { lifetime, sessions: Mutex::default() }
    }

    fn keep(&self, id: Vec<u8>, session: Vec<u8>, now: Instant) {
        let mut sessions = self.sessions.lock();
        if sessions.by_id.insert(id.clone(), (session, now)).is_none() {
            sessions.order.push_back(id);
        }
        if sessions.order.len() > MOST
            && let Some(oldest) = sessions.order.pop_front()
        {
            sessions.by_id.remove(&oldest);
        }
    }

    fn find(&self, id: &[u8], now: Instant) -> Option<Vec<u8>> {
        let sessions = self.sessions.lock();
        let (session, kept) = sessions.by_id.get(id)?;
        (now.duration_since(*kept) < self.lifetime).then(|| session.clone())
    }
}

impl StoresServerSessions for KeptSessions {
    fn put(&self, id: Vec<u8>, session: Vec<u8>) -> bool {
        self.keep(id, session, Instant::now());
        true
    }

    fn get(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.find(id, Instant::now())
    }

    fn take(&self, id: &[u8]) -> Option<Vec<u8>> {
        let found = self.find(id, Instant::now());
        self.sessions.lock().by_id.remove(id);
        found
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> Vec<u8> {
        number.to_be_bytes().to_vec()
    }

    #[test]
    fn a_session_is_found_for_its_time() {
        let (kept, now) = (KeptSessions::new(Duration::from_secs(10)), Instant::now());
        kept.keep(id(1), b"one".to_vec(), now);
        assert_eq!(kept.find(&id(1), now + Duration::from_secs(9)).as_deref(), Some(b"one".as_slice()));
        assert_eq!(kept.find(&id(1), now + Duration::from_secs(10)), None);
    }

    #[test]
    fn the_oldest_go_first_and_what_was_taken_counts_too() {
        let kept = KeptSessions::new(Duration::from_secs(10));
        for number in 0..=MOST {
            assert!(kept.put(id(number), id(number)));
        }
        assert_eq!((kept.get(&id(0)), kept.get(&id(1))), (None, Some(id(1))));
        assert_eq!((kept.take(&id(1)), kept.take(&id(1))), (Some(id(1)), None));
        for number in 0..3 * MOST {
            kept.put(id(number), id(number));
            kept.take(&id(number));
        }
        assert!(kept.sessions.lock().order.len() <= MOST);
    }
}
