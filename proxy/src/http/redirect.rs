//! Counts why a redirect went to the client although its route would follow redirects.
//! It must not know when one is followed.

use super::stats::RouterStats;
use crate::route::RedirectRefusal;

pub(crate) fn count_refusal(stats: &RouterStats, refusal: RedirectRefusal) {
    match refusal {
        RedirectRefusal::BadLocation => stats.passthrough_internal_redirect_bad_location().inc(),
        RedirectRefusal::UnsafeScheme => stats.passthrough_internal_redirect_unsafe_scheme().inc(),
        RedirectRefusal::TooManyRedirects => stats.passthrough_internal_redirect_too_many_redirects().inc(),
        RedirectRefusal::NoRoute => stats.passthrough_internal_redirect_no_route().inc(),
        RedirectRefusal::Predicate => stats.passthrough_internal_redirect_predicate().inc(),
    }
}
