//! Stats as a page: what the text form says, and links to the other forms. It must not know which are asked for.

use tidegate_stats::Store;

use super::super::help::escape;
use super::{Asked, text};

/// An active page looks again every few seconds.
pub(super) fn write(asked: &Asked, active: bool, store: &Store) -> String {
    let again = if active { "<meta http-equiv='refresh' content='5'>\n" } else { "" };
    let text = escape(&text::write(asked, store));
    format!(
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<title>Tidegate Stats</title>\n{again}</head>\n<body>\n\
         <form action='stats' method='get'>\n\
         <input type='text' name='filter' placeholder='filter'>\n\
         <label><input type='checkbox' name='usedonly'> used only</label>\n\
         <select name='format'><option>html</option><option>active-html</option><option>text</option>\
         <option>json</option><option>prometheus</option></select>\n\
         <button>show</button>\n</form>\n<pre>\n{text}</pre>\n</body>\n</html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{Fake, get};

    #[test]
    fn a_page_has_the_stats_and_an_active_one_looks_again() {
        let store = tidegate_stats::Store::new();
        store.root().counter("a<b").inc();
        let state = Fake::with_stats(store);
        let page = get(&state, "/stats?format=html&filter=a");
        assert_eq!(page.content_type, "text/html; charset=UTF-8");
        assert!(page.text().contains("<pre>\na&lt;b: 1\n</pre>"), "{}", page.text());
        assert!(!page.text().contains("refresh"));
        assert!(get(&state, "/stats?format=active-html").text().contains("http-equiv='refresh'"));
    }
}
