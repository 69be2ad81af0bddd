//! `/logging`: the loggers' levels, and changes to them. It must not know what loggers there are.

use super::Call;
use super::reply::Reply;
use super::state::{LogChange, LogLevel};

pub(super) fn change(call: &Call<'_>) -> Reply {
    let outcome = match call.query.pairs() {
        [] => Ok(()),
        [(name, value)] => set(call, name, value),
        _ => Err("invalid number of parameters"),
    };
    let loggers = call.state.loggers();
    let mut text = String::from("active loggers:\n");
    text.extend(loggers.iter().map(|(name, level)| format!("  {name}: {}\n", level.name())));
    text.push('\n');
    match outcome {
        Ok(()) => Reply::ok(text),
        Err(reason) => Reply::bad_request(format!("error: {reason}\n\n{}{text}", usage())),
    }
}

fn set(call: &Call<'_>, name: &str, value: &str) -> Result<(), &'static str> {
    let change = match (name, value) {
        (_, "") => return Ok(()),
        ("level", level) => LogChange::All(parse(level)?),
        ("paths", pairs) => LogChange::Named(pairs.split(',').map(|text| pair(text, EMPTY)).collect::<Result<_, _>>()?),
        ("group", text) => {
            let (group, level) = pair(text, "empty logger name or empty logger level in group")?;
            LogChange::Group(group, level)
        }
        (logger, level) => LogChange::Named(vec![(logger.to_owned(), parse(level)?)]),
    };
    call.state.change_log_levels(&change)
}

const EMPTY: &str = "empty logger name or empty logger level";

fn pair(text: &str, empty: &'static str) -> Result<(String, LogLevel), &'static str> {
    match text.split_once(':') {
        Some((logger, level)) if !logger.is_empty() && !level.is_empty() => Ok((logger.to_owned(), parse(level)?)),
        _ => Err(empty),
    }
}

fn parse(level: &str) -> Result<LogLevel, &'static str> {
    LogLevel::parse(level).ok_or("unknown logger level")
}

fn usage() -> String {
    let levels: String = LogLevel::ALL.iter().map(|level| format!("{} ", level.name())).collect();
    format!(
        "usage: /logging?<name>=<level> (change single level)\n\
         usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n\
         usage: /logging?level=<level> (change all levels)\n\
         usage: /logging?group=<group_name>:<level> (change group of loggers)\n\
         levels: {levels}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, post};

    #[test]
    fn levels_are_shown_and_set() {
        let state = Fake::default();
        assert_eq!(post(&state, "/logging").text(), "active loggers:\n  http: info\n  main: info\n\n");
        assert_eq!(post(&state, "/logging?http=debug").text(), "active loggers:\n  http: debug\n  main: info\n\n");
        let text = post(&state, "/logging?paths=http:trace,main:off").body;
        assert_eq!(text, "active loggers:\n  http: trace\n  main: off\n\n");
        assert_eq!(post(&state, "/logging?level=error").text(), "active loggers:\n  http: error\n  main: error\n\n");
    }

    #[test]
    fn mistakes_are_told_and_change_nothing() {
        let state = Fake::default();
        for (path, reason) in [
            ("/logging?level=warn", "unknown logger level"),
            ("/logging?nope=info", "unknown logger name"),
            ("/logging?paths=http:trace,nope:info", "unknown logger name"),
            ("/logging?paths=http", "empty logger name or empty logger level"),
            ("/logging?level=info&http=info", "invalid number of parameters"),
            ("/logging?group=http:info", "group parameter requires fine-grain logging to be enabled"),
        ] {
            let reply = post(&state, path);
            assert_eq!(reply.status, http::StatusCode::BAD_REQUEST);
            assert!(reply.text().starts_with(&format!("error: {reason}\n\nusage: /logging?<name>=<level>")), "{path}");
            assert!(reply.text().ends_with("critical off \nactive loggers:\n  http: info\n  main: info\n\n"), "{path}");
        }
    }
}
