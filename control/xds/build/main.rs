//! Turns Envoy's .proto files into the static tables of `schema`. It must not know what the tables are used for.

mod protos;
mod rules;
mod tables;

use std::{env, error::Error, fs, path::PathBuf, process};

fn main() {
    if let Err(error) = generate() {
        eprintln!("the schema tables cannot be made: {error}");
        process::exit(1);
    }
}

fn generate() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let pool = protos::compile(&out)?;
    fs::write(out.join("tables.rs"), tables::generate(&pool)?)?;
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
