//! `envoy.config.bootstrap.v3.LayeredRuntime` -> runtime layers, and a runtime value's text -> an entry.
//! It must not know how layers are merged nor who reads them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_filters::context::CompileContext;
use tidegate_xds::pb::envoy::config::bootstrap::v3 as proto;
use tidegate_xds::pb::envoy::service::runtime::v3::Runtime as RuntimeProto;
use tidegate_xds::pb::google::protobuf::value::Kind;
use tidegate_xds::pb::google::protobuf::{Struct, Value};
use tidegate_xds::{Coverage, FieldError, FieldPath, Format, UnknownFields};

use super::sources::{Known, config_source};
use crate::runtime::{Entry, Layer, LayerSource, Values};

/// What is compiled here.
pub(crate) const COVERAGE: &[Coverage] = &[
    Coverage { message: "envoy.config.bootstrap.v3.LayeredRuntime", enforced: &["layers"], listed: &[] },
    Coverage {
        message: "envoy.config.bootstrap.v3.RuntimeLayer",
        enforced: &["name", "static_layer", "admin_layer", "disk_layer", "rtds_layer"],
        listed: &[],
    },
    Coverage { message: "envoy.config.bootstrap.v3.RuntimeLayer.AdminLayer", enforced: &[], listed: &[] },
    Coverage {
        message: "envoy.config.bootstrap.v3.RuntimeLayer.RtdsLayer",
        enforced: &["name", "rtds_config"],
        listed: &[],
    },
    Coverage { message: "envoy.service.runtime.v3.Runtime", enforced: &["name", "layer"], listed: &[] },
    Coverage {
        message: "envoy.config.bootstrap.v3.RuntimeLayer.DiskLayer",
        enforced: &["symlink_root", "subdirectory", "append_service_cluster"],
        listed: &[],
    },
];

/// Compiles the layers, lowest first. `service_cluster` is the node's cluster, a part of some directories; `known`:
/// what sources may refer to.
pub(crate) fn compile(
    config: &proto::LayeredRuntime,
    service_cluster: &str,
    known: &Known,
    context: &mut CompileContext<'_>,
) -> Result<Vec<Layer>, FieldError> {
    use proto::runtime_layer::LayerSpecifier;
    let mut names = BTreeSet::new();
    let mut layers: Vec<Layer> = Vec::with_capacity(config.layers.len());
    for (index, layer) in config.layers.iter().enumerate() {
        let at = context.path.clone().field("layers").index(index);
        let fail = |path: FieldPath, reason: String| Err(FieldError::new(path, reason).in_resource(context.resource));
        if !names.insert(layer.name.as_str()) {
            return fail(at.field("name"), format!("Duplicate layer name: {}", layer.name));
        }
        let source = match &layer.layer_specifier {
            Some(LayerSpecifier::StaticLayer(values)) => match static_values(values) {
                Ok(values) => LayerSource::Static(Arc::new(values)),
                Err(key) => return fail(at.field("static_layer"), format!("Invalid runtime entry value for {key}")),
            },
            Some(LayerSpecifier::AdminLayer(_)) => {
                if layers.iter().any(|layer| layer.source == LayerSource::Admin) {
                    let reason = "Too many admin layers specified in LayeredRuntime, at most one may be specified";
                    return fail(at.field("admin_layer"), reason.into());
                }
                LayerSource::Admin
            }
            Some(LayerSpecifier::DiskLayer(disk)) => disk_layer(disk, service_cluster),
            Some(LayerSpecifier::RtdsLayer(rtds)) => context.within_item("layers", index, |context| {
                context.within("rtds_layer", |context| rtds_layer(&layer.name, rtds, known, context))
            })?,
            None => return fail(at, "layer specifier not set".into()),
        };
        layers.push(Layer { name: layer.name.as_str().into(), source });
    }
    Ok(layers)
}

/// Without a name of its own, the resource has that of the layer.
fn rtds_layer(
    layer: &str,
    rtds: &proto::runtime_layer::RtdsLayer,
    known: &Known,
    context: &mut CompileContext<'_>,
) -> Result<LayerSource, FieldError> {
    let Some(source) = &rtds.rtds_config else { return Err(context.error_at("rtds_config", "value is required")) };
    let source = context.within("rtds_config", |context| config_source(source, known, context))?;
    let resource = if rtds.name.is_empty() { layer } else { &rtds.name };
    Ok(LayerSource::Discovered { resource: resource.into(), source })
}

/// The values of a layer that came from a control plane.
///
/// # Errors
/// A value that is none.
pub(crate) fn discovered(runtime: &RuntimeProto, context: &CompileContext<'_>) -> Result<Values, FieldError> {
    let none = Struct::default();
    static_values(runtime.layer.as_ref().unwrap_or(&none))
        .map_err(|key| context.error_at("layer", format!("Invalid runtime entry value for {key}")))
}

/// Reads a value as a disk or admin layer holds it: YAML.
pub(crate) fn read_value(text: &str) -> Result<Entry, String> {
    let decoded = tidegate_xds::decode("google.protobuf.Value", text.as_bytes(), Format::Yaml, UnknownFields::Reject)
        .map_err(first_reason)?;
    let value: Value = tidegate_xds::any::decode(&decoded.bytes, &FieldPath::root()).map_err(|error| error.reason)?;
    Ok(entry(&value, Some(text)))
}

fn first_reason(errors: Vec<FieldError>) -> String {
    errors.into_iter().next().map(|error| error.reason).unwrap_or_default()
}

fn disk_layer(disk: &proto::runtime_layer::DiskLayer, service_cluster: &str) -> LayerSource {
    let symlink_root = PathBuf::from(&disk.symlink_root);
    // Joined as text: a subdirectory that begins with a slash stays below the root.
    let mut directory = format!("{}/{}", disk.symlink_root, disk.subdirectory);
    if disk.append_service_cluster {
        directory = format!("{directory}/{service_cluster}");
    }
    LayerSource::Disk { symlink_root, directory: Path::new(&directory).to_owned() }
}

/// A static layer's values by dotted key; the error is the key whose value is none.
fn static_values(layer: &Struct) -> Result<Values, String> {
    let mut values = Values::new();
    for (key, value) in &layer.fields {
        flatten(key, value, &mut values)?;
    }
    Ok(values)
}

fn flatten(key: &str, value: &Value, values: &mut Values) -> Result<(), String> {
    match &value.kind {
        None | Some(Kind::NullValue(_) | Kind::ListValue(_)) => return Err(key.to_owned()),
        Some(Kind::StructValue(inner)) if !is_leaf(inner) => {
            for (name, value) in &inner.fields {
                flatten(&format!("{key}.{name}"), value, values)?;
            }
        }
        Some(_) => {
            values.insert(key.into(), entry(value, None));
        }
    }
    Ok(())
}

/// A struct that is a value, a fraction, and not a part of keys.
fn is_leaf(value: &Struct) -> bool {
    value.fields.is_empty() || ["numerator", "denominator"].iter().any(|name| value.fields.contains_key(*name))
}

/// A value as every kind of reader sees it.
fn entry(value: &Value, text: Option<&str>) -> Entry {
    let mut entry = Entry::default();
    match &value.kind {
        Some(Kind::NumberValue(number)) => {
            set_number(&mut entry, *number);
            entry.text = number.to_string();
        }
        Some(Kind::BoolValue(set)) => {
            entry.boolean = Some(*set);
            entry.text = set.to_string();
        }
        Some(Kind::StringValue(text)) => {
            entry.text.clone_from(text);
            if let Some(number) = parse_number(text) {
                set_number(&mut entry, number);
            }
        }
        Some(Kind::StructValue(fields)) => {
            entry.fraction = fraction(fields);
            entry.text = show(fields);
        }
        Some(Kind::NullValue(_) | Kind::ListValue(_)) | None => {}
    }
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        text.clone_into(&mut entry.text);
    }
    entry
}

fn set_number(entry: &mut Entry, number: f64) {
    entry.double = Some(number);
    if number < f64::from(i32::MAX) && number >= f64::from(i32::MIN) && number.fract() == 0.0 {
        entry.boolean = Some(number != 0.0);
    }
    if number >= 0.0 {
        // A share of a whole is cut off.
        entry.integer = Some(number as u64);
    }
}

fn parse_number(text: &str) -> Option<f64> {
    text.trim().parse::<f64>().ok()
}

/// A struct as a `FractionalPercent`; with any other field it is none.
fn fraction(value: &Struct) -> Option<(u64, u64)> {
    let (mut numerator, mut denominator) = (0, 100);
    for (name, value) in &value.fields {
        match (name.as_str(), &value.kind) {
            ("numerator", Some(Kind::NumberValue(number))) => numerator = *number as u64,
            ("numerator", _) => {}
            ("denominator", Some(Kind::StringValue(name))) => {
                denominator = match name.as_str() {
                    "HUNDRED" => 100,
                    "TEN_THOUSAND" => 10_000,
                    "MILLION" => 1_000_000,
                    _ => return None,
                }
            }
            _ => return None,
        }
    }
    Some((numerator, denominator))
}

/// A struct for people to read. Envoy prints protobuf's debug text, which is made not to be relied on.
fn show(value: &Struct) -> String {
    let field = |(name, value): (&String, &Value)| {
        let text = entry(value, None).text;
        match value.kind {
            Some(Kind::StringValue(_)) => format!("{name}: \"{text}\""),
            _ => format!("{name}: {text}"),
        }
    };
    let mut fields: Vec<_> = value.fields.iter().map(field).collect();
    fields.sort_unstable();
    format!("{{{}}}", fields.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_filters::context::{Defaults, Needs};
    use tidegate_stats::Store;

    fn compile_yaml(yaml: &str) -> Result<Vec<Layer>, String> {
        let message = "envoy.config.bootstrap.v3.LayeredRuntime";
        let decoded = tidegate_xds::decode(message, yaml.as_bytes(), Format::Yaml, UnknownFields::Reject).unwrap();
        let config: proto::LayeredRuntime = tidegate_xds::any::decode(&decoded.bytes, &FieldPath::root()).unwrap();
        let mut needs = Needs::default();
        let mut context = CompileContext {
            resource: "bootstrap",
            path: FieldPath::root(),
            defaults: Defaults::Safe,
            stats: Store::new().root(),
            needs: &mut needs,
        };
        compile(&config, "web", &Known { node: true, ..Known::default() }, &mut context)
            .map_err(|error| error.to_string())
    }

    fn static_entry(yaml: &str) -> Entry {
        let layers = compile_yaml(&format!("layers: [{{name: a, static_layer: {{k: {yaml}}}}}]")).unwrap();
        match &layers[0].source {
            LayerSource::Static(values) => values["k"].clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_value_is_what_its_text_can_be_read_as() {
        let of = |integer, double, boolean| (integer, double, boolean, None);
        for (yaml, expected) in [
            ("5", of(Some(5), Some(5.0), Some(true))),
            ("0", of(Some(0), Some(0.0), Some(false))),
            ("-3", of(None, Some(-3.0), Some(true))),
            ("1.5", of(Some(1), Some(1.5), None)),
            ("true", of(None, None, Some(true))),
            ("hello", of(None, None, None)),
            ("\"12\"", of(Some(12), Some(12.0), Some(true))),
            ("{numerator: 5}", (None, None, None, Some((5, 100)))),
            ("{numerator: 5, denominator: MILLION}", (None, None, None, Some((5, 1_000_000)))),
            ("{numerator: 5, other: 1}", (None, None, None, None)),
        ] {
            for entry in [static_entry(yaml), read_value(yaml).unwrap()] {
                assert_eq!((entry.integer, entry.double, entry.boolean, entry.fraction), expected, "{yaml}");
            }
            assert_eq!(read_value(yaml).unwrap().text, yaml);
        }
        assert_eq!(static_entry("1.5").text, "1.5");
        assert_eq!(static_entry("1234567").text, "1234567");
    }

    #[test]
    fn what_is_no_value_of_any_kind_is_still_text() {
        for text in ["", "[1,2]", "a\nb", "{}"] {
            let entry = read_value(text).unwrap();
            assert_eq!((entry.text.as_str(), entry.integer, entry.boolean), (text, None, None), "{text:?}");
        }
        assert_eq!(read_value("TRUE").unwrap().boolean, Some(true));
        assert_eq!(read_value("yes").unwrap().boolean, Some(true));
        assert_eq!(read_value(" 7").unwrap().integer, Some(7));
        assert!(read_value("{").is_err());
    }

    #[test]
    fn nested_keys_are_joined_by_dots() {
        let layers = compile_yaml("layers: [{name: a, static_layer: {x: {y: {z: 3}, f: {numerator: 1}}}}]").unwrap();
        let LayerSource::Static(values) = &layers[0].source else { panic!() };
        let keys: Vec<_> = values.keys().map(AsRef::as_ref).collect();
        assert_eq!(keys, ["x.f", "x.y.z"]);
    }

    #[test]
    fn a_disk_layer_knows_its_directory() {
        let disk = "{symlink_root: /srv/runtime, subdirectory: envoy, append_service_cluster: true}";
        let layers = compile_yaml(&format!("layers: [{{name: d, disk_layer: {disk}}}]")).unwrap();
        let expected =
            LayerSource::Disk { symlink_root: "/srv/runtime".into(), directory: "/srv/runtime/envoy/web".into() };
        assert_eq!(layers[0].source, expected);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let error = |yaml| compile_yaml(yaml).unwrap_err();
        assert!(error("layers: [{name: a, static_layer: {x: {y: [1]}}}]").contains("entry value for x.y"));
        assert!(error("layers: [{name: a, static_layer: {x: null}}]").contains("entry value for x"));
        assert!(error("layers: [{name: a, admin_layer: {}}, {name: a, admin_layer: {}}]").contains("Duplicate"));
        assert!(error("layers: [{name: a, admin_layer: {}}, {name: b, admin_layer: {}}]").contains("Too many"));
        assert!(error("layers: [{name: a}]").contains("layers[0]"));
        let ads = error("layers: [{name: a, rtds_layer: {name: x, rtds_config: {ads: {}}}}]");
        assert!(ads.contains("layers[0].rtds_layer.rtds_config.ads: ADS must be configured"), "{ads}");
    }
}
