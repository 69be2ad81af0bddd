//! The tables against a second reader of the same descriptors.

use prost_reflect::{Cardinality, DescriptorPool, Kind as Theirs};

use super::*;

fn pool() -> DescriptorPool {
    DescriptorPool::decode(&include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"))[..]).unwrap()
}

#[test]
fn every_message_and_field_is_in_the_tables() {
    let pool = pool();
    for theirs in pool.all_messages().filter(|theirs| message(theirs.full_name()).is_none()) {
        let file = theirs.parent_file().name().to_owned();
        assert!(["google/protobuf/descriptor.proto", "validate/validate.proto"].contains(&file.as_str()), "{file}");
    }
    for ours in messages() {
        let theirs = pool.get_message_by_name(ours.name()).unwrap();
        assert_eq!(ours.fields().len(), theirs.fields().len(), "{}", ours.name());
        for field in theirs.fields() {
            let ours = ours.by_number(field.number()).unwrap();
            assert_eq!(ours.name(), field.name());
            assert_eq!(ours.is_map(), field.is_map(), "{}", field.full_name());
            assert_eq!(ours.is_repeated(), field.cardinality() == Cardinality::Repeated, "{}", field.full_name());
            assert_eq!(ours.is_packed(), field.is_packed(), "{}", field.full_name());
            match field.kind() {
                Theirs::Message(of) => assert_eq!(ours.message().unwrap().name(), of.full_name()),
                Theirs::Enum(of) => assert_eq!(ours.enumeration().unwrap().name(), of.full_name()),
                kind => {
                    let (ours, theirs) = (format!("{:?}", ours.kind), format!("{kind:?}"));
                    assert!(ours.eq_ignore_ascii_case(&theirs), "{}: {ours}, {theirs}", field.full_name());
                }
            }
        }
    }
}

#[test]
fn fields_are_found_by_either_name() {
    let pool = pool();
    for ours in messages() {
        for field in pool.get_message_by_name(ours.name()).unwrap().fields() {
            for name in [field.name(), field.json_name()] {
                assert_eq!(ours.field(name).unwrap().number, field.number(), "{name}");
            }
        }
    }
    assert!(message("envoy.config.cluster.v3.Cluster").unwrap().field("connect_timeou").is_none());
}

#[test]
fn enums_and_oneofs_agree() {
    let pool = pool();
    for theirs in pool.all_enums() {
        let Some(ours) = ENUMS.iter().find(|ours| ours.name() == theirs.full_name()) else { continue };
        let ours: Vec<_> = ours.values().iter().map(|value| (value.name(), value.number)).collect();
        let values = theirs.enum_descriptor_proto().value.iter();
        assert_eq!(ours, values.map(|value| (value.name(), value.number())).collect::<Vec<_>>());
    }
    for ours in messages() {
        let theirs = pool.get_message_by_name(ours.name()).unwrap();
        for field in ours.fields() {
            let oneof = theirs.get_field(field.number).unwrap().containing_oneof();
            let oneof = oneof.filter(|oneof| !oneof.is_synthetic()).map(|oneof| oneof.name().to_owned());
            let of_ours = field.oneof().map(|at| ours.oneofs()[at].name().to_owned());
            assert_eq!(of_ours, oneof, "{}.{}", ours.name(), field.name());
        }
    }
}

#[test]
fn every_pattern_of_the_rules_compiles() {
    for rules in &RULES {
        if let rules::Check::Text(rules::TextRules { pattern: Some(pattern), .. }) = &rules.check {
            assert!(regex::Regex::new(pattern.source).is_ok(), "{}", pattern.source);
        }
    }
}

#[test]
fn the_tables_stay_small() {
    let names = NAMES.len();
    let fixed = size_of_val(&MESSAGES) + size_of_val(&FIELDS) + size_of_val(&BY_NAME) + size_of_val(&VALUES);
    let rules = size_of_val(&RULES);
    println!("tables: {fixed} bytes, names: {names}, rules: {rules}");
    assert!(fixed + names + rules < 500_000);
}
