//! One lookup of a name in the families that a cluster asks for, and what a failed half of it means.
//! It must not know when lookups happen nor what hosts are made of them.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::LookupFamily;

/// An address family, as one query asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// What came of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Never empty; with the least time to live, 0 when it is not known.
    Addresses { addresses: Vec<IpAddr>, ttl: Duration },
    /// The name does not exist, or has no address of the family.
    NoRecords,
    /// Nobody answered, or nobody who knew.
    Failed,
}

/// Asks for the addresses of a name.
pub trait Resolve: Send + Sync {
    fn query(&self, name: &str, family: Family) -> BoxFuture<'_, Answer>;
}

/// Looks a name up in the families of `policy`. `last` are the addresses that it had: where one half of a dual lookup fails,
/// the last ones of that half stay.
pub(super) async fn lookup(resolver: &dyn Resolve, name: &str, policy: LookupFamily, last: &[IpAddr]) -> Answer {
    if let Ok(literal) = name.parse() {
        return of_literal(literal, policy);
    }
    match policy {
        LookupFamily::V4Only => resolver.query(name, Family::V4).await,
        LookupFamily::V6Only => resolver.query(name, Family::V6).await,
        LookupFamily::Auto => first_then(resolver, name, Family::V6, Family::V4).await,
        LookupFamily::V4Preferred => first_then(resolver, name, Family::V4, Family::V6).await,
        LookupFamily::All => {
            let both = futures_util::future::join(resolver.query(name, Family::V4), resolver.query(name, Family::V6));
            let (v4, v6) = both.await;
            join(keep_failed(v4, Family::V4, last), keep_failed(v6, Family::V6, last))
        }
    }
}

fn of_literal(literal: IpAddr, policy: LookupFamily) -> Answer {
    let fits = match policy {
        LookupFamily::V4Only => literal.is_ipv4(),
        LookupFamily::V6Only => literal.is_ipv6(),
        LookupFamily::Auto | LookupFamily::V4Preferred | LookupFamily::All => true,
    };
    if fits { Answer::Addresses { addresses: vec![literal], ttl: Duration::ZERO } } else { Answer::NoRecords }
}

/// The second family is asked when the first gave nothing. Only if both say that there is nothing there is nothing.
async fn first_then(resolver: &dyn Resolve, name: &str, first: Family, second: Family) -> Answer {
    let answer = resolver.query(name, first).await;
    if matches!(answer, Answer::Addresses { .. }) {
        return answer;
    }
    match resolver.query(name, second).await {
        Answer::NoRecords if answer == Answer::Failed => Answer::Failed,
        other => other,
    }
}

/// A failed half counts as what it last was.
fn keep_failed(answer: Answer, family: Family, last: &[IpAddr]) -> Answer {
    if answer != Answer::Failed {
        return answer;
    }
    let addresses: Vec<_> = last.iter().copied().filter(|address| Family::of(address) == family).collect();
    if addresses.is_empty() { Answer::Failed } else { Answer::Addresses { addresses, ttl: Duration::ZERO } }
}

fn join(v4: Answer, v6: Answer) -> Answer {
    match (v4, v6) {
        (Answer::Addresses { mut addresses, ttl }, Answer::Addresses { addresses: more, ttl: other }) => {
            addresses.extend(more);
            Answer::Addresses { addresses, ttl: ttl.min(other) }
        }
        (answer @ Answer::Addresses { .. }, _) | (_, answer @ Answer::Addresses { .. }) => answer,
        (Answer::NoRecords, Answer::NoRecords) => Answer::NoRecords,
        _ => Answer::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed {
        v4: Answer,
        v6: Answer,
    }

    impl Resolve for Fixed {
        fn query(&self, _: &str, family: Family) -> BoxFuture<'_, Answer> {
            let answer = if family == Family::V4 { self.v4.clone() } else { self.v6.clone() };
            Box::pin(async move { answer })
        }
    }

    fn addresses(list: &[&str]) -> Answer {
        Answer::Addresses { addresses: ips(list), ttl: Duration::from_secs(5) }
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn ask(v4: Answer, v6: Answer, policy: LookupFamily, last: &[&str]) -> Answer {
        futures_util::FutureExt::now_or_never(lookup(&Fixed { v4, v6 }, "a", policy, &ips(last))).unwrap()
    }

    #[test]
    fn preferred_families_fall_back() {
        let (v4, v6) = (addresses(&["1.1.1.1"]), addresses(&["::1"]));
        assert_eq!(ask(v4.clone(), v6.clone(), LookupFamily::Auto, &[]), v6);
        assert_eq!(ask(v4.clone(), v6.clone(), LookupFamily::V4Preferred, &[]), v4);
        assert_eq!(ask(v4.clone(), Answer::NoRecords, LookupFamily::Auto, &[]), v4);
        assert_eq!(ask(v4.clone(), Answer::Failed, LookupFamily::Auto, &[]), v4);
        assert_eq!(ask(Answer::NoRecords, Answer::NoRecords, LookupFamily::Auto, &[]), Answer::NoRecords);
        assert_eq!(ask(v4, v6, LookupFamily::V6Only, &[]), addresses(&["::1"]));
    }

    /// Envoy 1.40 takes the later half's word; the half that failed might have had addresses.
    #[test]
    fn nothing_and_a_failure_are_a_failure() {
        for policy in [LookupFamily::Auto, LookupFamily::V4Preferred, LookupFamily::All] {
            assert_eq!(ask(Answer::NoRecords, Answer::Failed, policy, &[]), Answer::Failed, "{policy:?}");
            assert_eq!(ask(Answer::Failed, Answer::NoRecords, policy, &[]), Answer::Failed, "{policy:?}");
        }
    }

    #[test]
    fn a_failed_half_keeps_what_it_had() {
        let answer = ask(addresses(&["2.2.2.2"]), Answer::Failed, LookupFamily::All, &["1.1.1.1", "::1"]);
        assert!(matches!(answer, Answer::Addresses { addresses, .. } if addresses == ips(&["2.2.2.2", "::1"])));
        let answer = ask(addresses(&["2.2.2.2"]), Answer::NoRecords, LookupFamily::All, &["::1"]);
        assert!(matches!(answer, Answer::Addresses { addresses, .. } if addresses == ips(&["2.2.2.2"])));
        assert_eq!(ask(Answer::Failed, Answer::Failed, LookupFamily::All, &[]), Answer::Failed);
    }

    #[test]
    fn an_address_is_its_own_answer() {
        let one = futures_util::FutureExt::now_or_never(lookup(
            &Fixed { v4: Answer::Failed, v6: Answer::Failed },
            "::1",
            LookupFamily::Auto,
            &[],
        ));
        assert!(matches!(one, Some(Answer::Addresses { addresses, .. }) if addresses == ips(&["::1"])));
    }
}
