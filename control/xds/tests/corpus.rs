//! Real Envoy configurations, of which Envoy itself has said what it does with them. They are read from outside the
//! repository; where they are absent the tests say so and pass.
#![expect(clippy::unwrap_used, reason = "a test fails loudly")]

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use tidegate_xds::{
    FieldError, Format, UnknownFields, load, pb::envoy::config::bootstrap::v3::Bootstrap, to_json, validate,
};

/// What Envoy refuses for a reason that is not in the schema: whoever compiles the message finds these.
const NOT_OF_THE_SCHEMA: [&str; 5] = [
    "malformed IP address",
    "Didn't find a registered implementation",
    "Only a single wildcard domain is permitted",
    "no argument for repetition operator",
    "has the same matching rules defined",
];

struct Case {
    file: String,
    accept: bool,
    envoy_says: String,
    text: Vec<u8>,
}

fn cases() -> Vec<Case> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let corpus = env::var_os("TIDEGATE_SHARED").map_or(beside, PathBuf::from).join("corpus");
    let Ok(manifest) = fs::read_to_string(corpus.join("MANIFEST.tsv")) else {
        println!("skipped: ../shared/corpus is absent");
        return Vec::new();
    };
    let rows = manifest.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>());
    rows.map(|columns| Case {
        file: columns[0].to_owned(),
        accept: columns[1] == "accept",
        envoy_says: columns.get(5).copied().unwrap_or_default().to_owned(),
        // Nothing here opens the files that the placeholder leads to.
        text: fs::read_to_string(corpus.join(columns[0])).unwrap().replace("@CORPUS@", "/corpus").into_bytes(),
    })
    .collect()
}

fn read(case: &Case) -> Result<Vec<u8>, Vec<FieldError>> {
    let format = Format::of_path(Path::new(&case.file));
    load::<Bootstrap>(&case.text, format, UnknownFields::Reject).map(|loaded| loaded.bytes)
}

#[test]
fn what_envoy_accepts_is_accepted() {
    let mut refused = Vec::new();
    for case in cases().iter().filter(|case| case.accept) {
        if let Err(errors) = read(case) {
            refused.push(format!("{}: {}", case.file, errors[0]));
        }
    }
    assert!(refused.is_empty(), "{} refused:\n{}", refused.len(), refused.join("\n"));
}

#[test]
fn what_breaks_the_schema_is_refused_by_field() {
    for case in cases().iter().filter(|case| !case.accept) {
        let beyond = NOT_OF_THE_SCHEMA.iter().any(|reason| case.envoy_says.contains(reason));
        match read(case) {
            Ok(_) => assert!(beyond, "{} is accepted, but Envoy says: {}", case.file, case.envoy_says),
            Err(errors) => {
                assert!(!beyond, "{}: {}", case.file, errors[0]);
                for error in &errors {
                    assert!(!error.path.is_root() && error.location.is_some(), "{}: {error}", case.file);
                }
                let field = field_named_by_envoy(&case.envoy_says);
                let named = errors.iter().any(|error| error.path.as_str().starts_with(&field));
                assert!(named, "{}: {field} is not among {errors:?}", case.file);
            }
        }
    }
}

/// `... @ a.b[0].c: ...` of an error of protobuf's JSON; of an unknown field it names the message.
fn field_named_by_envoy(says: &str) -> String {
    let field = says.split_once(" @ ").and_then(|(_, rest)| rest.split_once(':')).map_or("", |(field, _)| field);
    field.replace(".<any>", "")
}

#[test]
fn what_is_printed_is_read_back_the_same() {
    let bootstrap = "envoy.config.bootstrap.v3.Bootstrap";
    for case in cases().iter().filter(|case| case.accept) {
        let bytes = read(case).unwrap();
        let printed = to_json(bootstrap, &bytes);
        let text = printed.to_string().into_bytes();
        let again = tidegate_xds::decode(bootstrap, &text, Format::Json, UnknownFields::Reject).unwrap();
        assert_eq!(to_json(bootstrap, &again.bytes), printed, "{}", case.file);
        assert_eq!(validate(bootstrap, &again.bytes), Ok(()), "{}", case.file);
    }
}
