//! What can be asked, as text and as a page. It must not know any endpoint itself.

use super::Call;
use super::endpoints::{ENDPOINTS, Endpoint};
use super::reply::Reply;

pub(super) fn show(_: &Call<'_>) -> Reply {
    Reply::ok(text())
}

/// The list of endpoints with their parameters.
pub(super) fn text() -> String {
    let mut text = String::from("admin commands are:\n");
    for endpoint in ENDPOINTS {
        let post = if endpoint.changes { " (POST)" } else { "" };
        text.push_str(&format!("  {}{post}: {}\n", endpoint.path, endpoint.help));
        for (name, help) in endpoint.parameters {
            text.push_str(&format!("      {name}: {help}\n"));
        }
    }
    text
}

/// The home page: a link for what shows something, a button for what changes something.
pub(super) fn home(_: &Call<'_>) -> Reply {
    let rows: String = ENDPOINTS.iter().filter(|endpoint| endpoint.path != "/").map(row).collect();
    Reply::html(format!(
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<title>Tidegate Admin</title>\n<style>\n\
         body {{ font-family: sans-serif; }}\ntd {{ padding: 4px 12px; vertical-align: top; }}\n\
         tr:nth-child(even) {{ background: #f4f4f4; }}\nform {{ margin: 0; }}\n.parameter {{ color: #555; }}\n\
         </style>\n</head>\n<body>\n<table>\n<tr><th>Command</th><th>Description</th></tr>\n{rows}</table>\n</body>\n</html>\n"
    ))
}

fn row(endpoint: &Endpoint) -> String {
    let name = endpoint.path.trim_start_matches('/');
    let command = if endpoint.changes {
        format!("<form action='{name}' method='post'><button>{name}</button></form>")
    } else {
        format!("<a href='{name}'>{name}</a>")
    };
    let parameter = |(name, help): &(&str, &str)| format!("<div class='parameter'>{name}: {}</div>", escape(help));
    let parameters: String = endpoint.parameters.iter().map(parameter).collect();
    format!("<tr><td>{command}</td><td>{}{parameters}</td></tr>\n", escape(endpoint.help))
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, get};

    #[test]
    fn help_lists_every_endpoint() {
        let help = get(&Fake::default(), "/help");
        assert!(help.text().starts_with("admin commands are:\n  /: Admin home page\n  /allocprofiler (POST): "));
        assert!(help.text().contains("  /quitquitquit (POST): exit the server\n"));
        assert!(
            help.text().contains("      usedonly: Only include stats that have been written by system since restart\n")
        );
    }

    #[test]
    fn the_home_page_has_links_and_buttons() {
        let home = get(&Fake::default(), "/");
        assert_eq!(home.content_type, "text/html; charset=UTF-8");
        assert!(home.text().contains("<a href='clusters'>clusters</a>"));
        assert!(home.text().contains("<form action='healthcheck/fail' method='post'>"));
        assert!(home.text().contains("&lt;logger_name1&gt;"));
    }
}
