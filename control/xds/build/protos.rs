//! Finds the .proto files that `envoy-types` ships and compiles them, with our own few, into one descriptor pool.
//! It must not know what becomes of the descriptors.

use std::{
    env,
    error::Error,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use prost_reflect::DescriptorPool;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Compiles every .proto file of the installed `envoy-types` and those beside this crate.
pub(crate) fn compile(out: &Path) -> Result<DescriptorPool> {
    let ours = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    let theirs = envoy_types()?.join("proto");
    println!("cargo:rerun-if-changed={}", theirs.display());
    let mut roots = import_roots(&theirs)?;
    roots.push(ours);
    // Envoy's API does not use them today, but any JSON may hold them.
    let mut files = vec!["google/protobuf/field_mask.proto".to_owned(), "google/protobuf/empty.proto".to_owned()];
    for root in &roots {
        collect(root, root, &mut files)?;
    }
    files.sort();
    files.dedup();

    let set = out.join("descriptors.bin");
    let mut protoc = Command::new(protoc_bin_vendored::protoc_bin_path()?);
    protoc
        .args(roots.iter().map(|root| format!("-I{}", root.display())))
        .arg(format!("-I{}", protoc_bin_vendored::include_path()?.display()))
        .arg("--include_imports")
        .arg(format!("--descriptor_set_out={}", set.display()))
        .args(&files);
    run(&mut protoc)?;
    Ok(DescriptorPool::decode(fs::read(set)?.as_slice())?)
}

/// Runs a command and returns what it printed. A program that cargo has unpacked a moment ago can still count as being written:
/// it is waited for.
fn run(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut tries = 0;
    let output = loop {
        match command.output() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && tries < 50 => {
                tries += 1;
                thread::sleep(Duration::from_millis(100));
            }
            output => break output.map_err(|error| format!("{program}: {error}"))?,
        }
    };
    if !output.status.success() {
        return Err(format!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(output.stdout)
}

/// The folder of the `envoy-types` package that cargo resolved for this workspace.
fn envoy_types() -> Result<PathBuf> {
    let metadata = cargo_metadata(&["--offline", "--locked"])
        .or_else(|_| cargo_metadata(&["--offline"]))
        .or_else(|_| cargo_metadata(&[]))?;
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "envoy-types")
        .and_then(|package| Path::new(package["manifest_path"].as_str()?).parent().map(Path::to_owned))
        .ok_or_else(|| "cargo metadata does not list envoy-types".into())
}

/// For the host only: what other platforms need may not have been fetched.
fn cargo_metadata(flags: &[&str]) -> Result<serde_json::Value> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("Cargo.toml");
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo
        .args(["metadata", "--format-version=1", "--filter-platform", &env::var("HOST")?, "--manifest-path"])
        .arg(manifest)
        .args(flags);
    Ok(serde_json::from_slice(&run(&mut cargo)?)?)
}

/// Each folder under `proto/` is an import root, and two of them have one inside.
fn import_roots(proto: &Path) -> Result<Vec<PathBuf>> {
    let mut roots = Vec::new();
    for entry in fs::read_dir(proto)? {
        let path = entry?.path();
        let nested = ["proto", "api"].map(|inner| path.join(inner)).into_iter().find(|inner| inner.is_dir());
        roots.push(nested.unwrap_or(path));
    }
    roots.sort();
    Ok(roots)
}

/// Adds the .proto files under `dir`, named relative to `root`.
fn collect(root: &Path, dir: &Path, files: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path.strip_prefix(root)?.to_string_lossy().replace('\\', "/"));
        }
    }
    Ok(())
}
