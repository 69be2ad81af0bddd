//! Called as Envoy: what Envoy's flags do, in exit codes, words and effects.

use std::process::{Command, Output};

use crate::support::gateway::{Directory, eventually, free_port};
use crate::support::{Client, Gateway, http_bootstrap};

const DIRECT: &str = "[{ match: { prefix: / }, direct_response: { status: 200 } }]";

fn called(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate")).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn validating_says_ok_or_what_is_wrong() {
    let directory = Directory::new();
    let good = directory.put("good.yaml", &http_bootstrap(1, DIRECT, &[]));
    let good = good.to_str().unwrap();
    let output = called(&["-c", good, "--mode", "validate"]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("configuration '{good}' OK\n"));
    let output = called(&["-c", good, "--mode", "validate", "--config-yaml", "{admin: {nope: 1}}"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("admin.nope"), "{}", said(&output));
}

#[test]
fn wrong_flags_end_with_1() {
    for (arguments, words) in [
        (&["--no-such-flag"][..], "--no-such-flag"),
        (&["-c", "x", "-l", "nope"], "invalid log level specified 'nope'"),
        (&["-c", "x", "--component-log-level", "nope:info"], "invalid component specified 'nope'"),
        (
            &["-c", "x", "--concurrency", "many"],
            "PARSE ERROR: Argument: (--concurrency)\n             Couldn't read argument value from string 'many'",
        ),
        (&["-c", "x", "--concurrency", "99999999999"], "Couldn't read argument value from string '99999999999'"),
        (&["-c", "x", "--drain-time-s", "99999999999"], "PARSE ERROR: Argument: (--drain-time-s)"),
        (&["-c", "x", "--mode", "nope"], "error: unknown mode 'nope'"),
        (&["-c", "x", "--drain-strategy", "nope"], "error: unknown drain-strategy 'nope'"),
        (&["-c", "x", "--local-address-ip-version", "v5"], "error: unknown IP address version 'v5'"),
        (&["-c", "x", "--component-log-level", "http"], "error: component log level not correctly specified 'http'"),
        (&["-c", "x", "--service-node"], "PARSE ERROR: Argument: (--service-node)\n             Missing a value"),
        (&["-c", "x", "--mode"], "Missing a value for this argument!"),
        (
            &["-c", "x", "--restart-epoch", "1", "--use-dynamic-base-id"],
            "error: cannot use --restart-epoch=1 with --use-dynamic-base-id",
        ),
        (&["-c", "", "--log-path", ""], "at least one of --config-path or --config-yaml should be non-empty"),
        (
            &["-c", "x", "--log-path", "/nonexistent/log"],
            "error: Failed to open log-file '/nonexistent/log': No such file or directory",
        ),
        (&["-c", "x", "-c", "y"], "Argument already set!"),
        (&["-c", "x", "nope"], "PARSE ERROR: Argument: nope\n             Couldn't find match for argument"),
        (&["-c", "/nonexistent/file"], "/nonexistent/file"),
        (&["-c", "x", "--stats-tag", "a"], "error: misformatted stats-tag 'a'"),
        (&["-c", "x", "--stats-tag", "a_b:c"], "misformatted stats-tag 'a_b:c' contains invalid char in 'a_b'"),
        (&["-c", "x", "--stats-tag", "a:b.c"], "misformatted stats-tag 'a:b.c' contains invalid char in 'b.c'"),
        (&["-c", "x", "--stats-tag", "a:"], "misformatted stats-tag 'a:' contains invalid char in ''"),
        (&["-c", "x", "--enable-mutex-tracing"], "error: --enable-mutex-tracing is not supported"),
        (
            &["-c", "x", "--disable-extensions", "envoy.filters.http.cors"],
            "error: --disable-extensions is not supported",
        ),
        (
            &["-c", "x", "--enable-fine-grain-logging", "--component-log-level", "http:debug"],
            "error: --component-log-level will not work with --enable-fine-grain-logging",
        ),
        (&["--mode", "validate"], "at least one of --config-path or --config-yaml should be non-empty"),
    ] {
        let output = called(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(said(&output).contains(words), "{arguments:?}: {}", said(&output));
    }
}

#[test]
fn a_version_is_told() {
    for arguments in [&["--version"][..], &["run", "--version"]] {
        let output = called(arguments);
        assert!(output.status.success());
        assert!(said(&output).contains(concat!("tidegate ", env!("CARGO_PKG_VERSION"))), "{}", said(&output));
    }
}

#[test]
fn flags_that_change_nothing_are_taken() {
    let directory = Directory::new();
    let good = directory.put("good.yaml", &http_bootstrap(1, DIRECT, &[]));
    let flags = ["--cpuset-threads", "--skip-hot-restart-on-no-parent", "--skip-hot-restart-parent-stats"];
    let more = ["--base-id", "3", "--restart-epoch", "0", "--skip-deprecated-logs", "--allow-unknown-fields"];
    let shared = ["--base-id-path", "/nonexistent/x", "--socket-path", "@x", "--socket-mode", "600"];
    let rest = ["--log-stacktrace-single-entry", "--disable-extensions", "", "--log-path", "/nonexistent/log"];
    let arguments = [&["--mode", "validate", "-c", good.to_str().unwrap()][..], &flags, &more, &shared, &rest].concat();
    let output = called(&arguments);
    assert!(output.status.success(), "{}", said(&output));
}

/// As Envoy writes it: not where there is to be no hot restart, nor where a configuration is only validated.
#[test]
fn the_base_id_is_written_where_it_was_asked_for() {
    let directory = Directory::new();
    let path = directory.0.join("base-id");
    let told = |flags: &[&str]| {
        let bootstrap = http_bootstrap(free_port(), DIRECT, &[]);
        let _gateway = Gateway::start_with(&bootstrap, &[&["--base-id-path", path.to_str().unwrap()], flags].concat());
        std::fs::read_to_string(&path).ok()
    };
    assert_eq!(told(&["--disable-hot-restart"]), None);
    assert_eq!(told(&[]).as_deref(), Some("0"));
    assert_eq!(told(&["--base-id", "7"]).as_deref(), Some("7"));
    let absent = directory.0.join("absent/base-id");
    let bootstrap = http_bootstrap(free_port(), DIRECT, &[]);
    let mut gateway = Gateway::spawn(&bootstrap, &["--base-id-path", absent.to_str().unwrap()]);
    gateway.wait_for(&format!("cannot open base id output file {} for writing: No such file", absent.display()));
    gateway.wait_for("listening");
}

#[test]
fn called_as_envoy_the_version_has_its_form() {
    let directory = Directory::new();
    let envoy = directory.0.join("envoy");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tidegate"), &envoy).unwrap();
    let output = Command::new(&envoy).arg("--version").output().unwrap();
    let text = said(&output);
    assert!(text.starts_with(&format!("\n{}  version: tidegate/", envoy.display())), "{text}");
    assert_eq!(text.trim().split('/').count(), envoy.display().to_string().split('/').count() + 4, "{text}");
    assert!(output.status.success());
}

#[test]
fn what_is_wrong_in_yaml_without_a_file_has_its_place() {
    let output = called(&["--mode", "validate", "--config-yaml", "node: {id: a}\nadmin: {nope: 1}\n"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("(line 2, column "), "{}", said(&output));
}

#[test]
fn a_file_among_the_flags_lets_a_start_begin_as_a_drain() {
    let (directory, flags) = (Directory::new(), Directory::new());
    let path = directory.0.join("admin");
    let bootstrap = format!(
        "flags_path: {}\nadmin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }} }}\n{}",
        flags.0.display(),
        http_bootstrap(free_port(), DIRECT, &[])
    );
    let ready = |expected: u16| {
        let _gateway = Gateway::start_with(&bootstrap, &["--admin-address-path", path.to_str().unwrap()]);
        let address = std::fs::read_to_string(&path).unwrap();
        assert_eq!(Client::new(address.rsplit(':').next().unwrap().parse().unwrap()).get("/ready").status, expected);
    };
    ready(200);
    flags.put("drain", "");
    ready(503);
}

#[test]
fn yaml_is_merged_over_the_file_and_the_admin_address_is_written() {
    let (port, directory) = (free_port(), Directory::new());
    let path = directory.0.join("admin");
    let admin = "{admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}}";
    let flags = ["--config-yaml", admin, "--admin-address-path", path.to_str().unwrap()];
    let _gateway = Gateway::start_with(&http_bootstrap(port, DIRECT, &[]), &flags);
    let address = std::fs::read_to_string(&path).unwrap();
    let admin_port = address.rsplit(':').next().unwrap().parse().unwrap();
    assert_eq!(Client::new(admin_port).get("/ready").text(), "LIVE\n");
    assert_eq!(Client::new(port).get("/").status, 200);
}

#[test]
fn an_admin_address_that_cannot_be_written_is_told_and_keeps_nothing_from_serving() {
    let path = Directory::new().0.join("absent/admin");
    let admin = "{admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}}";
    let flags = ["--config-yaml", admin, "--admin-address-path", path.to_str().unwrap()];
    let mut gateway = Gateway::spawn(&http_bootstrap(free_port(), DIRECT, &[]), &flags);
    gateway.wait_for(&format!("cannot open admin address output file {} for writing: No such file", path.display()));
    gateway.wait_for("listening");
}

#[test]
fn texts_with_fields_that_nobody_knows_are_counted() {
    let (port, admin) = (free_port(), free_port());
    let more =
        format!("{{nope: 1, admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}}}");
    let bootstrap = format!("neither: 1\nnor: 2\n{}", http_bootstrap(port, DIRECT, &[]));
    let flags = ["--allow-unknown-static-fields", "--config-yaml", &more];
    let _gateway = Gateway::start_with(&bootstrap, &flags);
    let told = Client::new(admin).get("/stats?filter=static_unknown_fields").text();
    assert_eq!(told, "server.static_unknown_fields: 2\n");
}

#[test]
fn the_log_has_the_format_and_place_that_flags_give_it() {
    let directory = Directory::new();
    let path = directory.0.join("log");
    let flags = ["--log-format", "<%l> %n %v|", "--log-path", path.to_str().unwrap()];
    let bootstrap = http_bootstrap(free_port(), DIRECT, &[]);
    let _gateway = Gateway::spawn(&bootstrap, &flags);
    eventually("a line of that format", || {
        std::fs::read_to_string(&path).is_ok_and(|text| text.contains("<info> main listening"))
    });
}

#[test]
fn a_log_format_in_the_bootstrap_acts_and_excludes_the_flag() {
    let bootstrap = format!(
        "application_log_config: {{ log_format: {{ json_format: {{ level: '%l', text: '%j' }} }} }}\n{}",
        http_bootstrap(free_port(), DIRECT, &[])
    );
    let mut gateway = Gateway::spawn(&bootstrap, &[]);
    let line = gateway.wait_for("listening");
    assert!(line.starts_with("{\"level\":\"info\",\"text\":\"listening"), "{line}");
    let directory = Directory::new();
    let file = directory.put("both.yaml", &bootstrap);
    for mode in ["serve", "validate"] {
        let output = called(&["-c", file.to_str().unwrap(), "--log-format", "%v", "--mode", mode]);
        assert_eq!(output.status.code(), Some(1), "{mode}");
        assert!(said(&output).contains("Only one of ApplicationLogConfig.log_format or CLI option --log-format"));
    }
}

#[test]
fn there_is_no_hot_restart_and_it_says_so() {
    let output = called(&["--hot-restart-version"]);
    assert!(output.status.success());
    assert_eq!(said(&output), "disabled\n");
}

#[test]
fn a_tag_of_the_command_line_is_on_every_stat_and_goes_before_others() {
    let admin = free_port();
    let bootstrap = format!(
        "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}
stats_config: {{ stats_tags: [{{ tag_name: pod, fixed_value: other }}, {{ tag_name: fixed, fixed_value: x }}] }}
{}",
        http_bootstrap(free_port(), DIRECT, &[])
    );
    let _gateway = Gateway::start_with(&bootstrap, &["--stats-tag", "pod:a:b/c", "--stats-tag", "zone:z"]);
    let mut client = Client::new(admin);
    let shown = client.get("/stats/prometheus?filter=^server.live$").text();
    assert!(shown.contains(r#"envoy_server_live{pod="a:b/c",zone="z",fixed="x"} "#), "{shown}");
    // As in Envoy, which counts files before it reads any of this.
    let shown = client.get("/stats/prometheus?filter=^filesystem.write_failed$").text();
    assert!(shown.contains("envoy_filesystem_write_failed{} 0"), "{shown}");
    let told = client.get("/server_info").text();
    assert!(told.contains("\"pod:a:b/c\",\n   \"zone:z\"\n"), "{told}");
}

#[test]
fn lines_of_the_log_may_be_escaped() {
    let bootstrap = http_bootstrap(free_port(), DIRECT, &[]);
    let flags = ["--log-format-escaped", "--log-format", "\"%n\"\t%v\n.", "-l", "info"];
    let mut gateway = Gateway::spawn(&bootstrap, &flags);
    let line = gateway.wait_for("listening");
    assert!(line.starts_with("\\\"main\\\"\\tlistening") && line.ends_with("\\n."), "{line}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_core_dump_may_be_asked_for() {
    let directory = Directory::new();
    let bootstrap = directory.put("bootstrap.yaml", &http_bootstrap(free_port(), DIRECT, &[]));
    let script = "ulimit -S -c 0; exec \"$0\" -c \"$1\" --concurrency 1 --enable-core-dump";
    let mut child = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_tidegate"), bootstrap.to_str().unwrap()])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let limits = || std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap_or_default();
    let core = || {
        let line = limits().lines().find_map(|line| line.strip_prefix("Max core file size").map(str::to_owned));
        line.map(|line| line.split_whitespace().map(str::to_owned).take(2).collect::<Vec<_>>())
    };
    eventually("the limit is what it may be", || core().is_some_and(|core| core[0] == core[1]));
    child.kill().unwrap();
    child.wait().unwrap();
}
