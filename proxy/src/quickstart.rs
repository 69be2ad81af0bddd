//! `tidegate quickstart`: a gateway and the control plane that it asks, in one process, from files of the short form that may
//! be edited while it runs. It must not know more of the proxy than a configuration file does.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_control::run::{self, Listen, RunError};
use tidegate_control::server::Sets;
use tidegate_control::short;
use tidegate_control::source::{self, Directory, Refused, Source};
use tidegate_filters::context::Defaults;
use tokio::net::TcpListener;

use crate::check;
use crate::config::bootstrap::Bootstrap;
use crate::server::{self, Options, StartError};

/// Where the demonstration is written unless another place is named.
const DIRECTORY: &str = "tidegate-quickstart";

/// The file that is meant to be edited.
const GATEWAY: &str = "gateway.yaml";

/// For editors; sources do not look at hidden files.
const SCHEMA: &str = ".tidegate.schema.json";

/// The demonstration, file by file.
const FILES: [(&str, &str); 2] = [
    (GATEWAY, include_str!("../../configs/short/quickstart/gateway.yaml")),
    ("demo-upstreams.yaml", include_str!("../../configs/short/quickstart/demo-upstreams.yaml")),
];

/// Where the schema lies beside the repository's own copy of the demonstration.
const SCHEMA_OF_REPOSITORY: &str = "../../short.schema.json";

/// Why there is no demonstration.
#[derive(Debug, thiserror::Error)]
pub enum QuickstartError {
    #[error("cannot write {path}: {1}", path = .0.display())]
    Write(PathBuf, io::Error),
    #[error(transparent)]
    Source(#[from] Refused),
    #[error("cannot listen on a port of the loopback interface: {0}")]
    Listen(io::Error),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    ControlPlane(#[from] RunError),
    #[error("the control plane has ended")]
    Ended,
}

/// What is served.
#[derive(Debug)]
pub struct Served {
    path: PathBuf,
    /// It is the demonstration as it was written.
    is_demonstration: bool,
}

/// Finds what is to be served: what is there, or the demonstration where nothing is. Nothing that is there is changed.
///
/// # Errors
/// Files that cannot be written, and all that is wrong with those that are there.
pub fn prepare(path: Option<PathBuf>) -> Result<Served, QuickstartError> {
    let path = path.unwrap_or_else(|| DIRECTORY.into());
    if holds_nothing(&path) {
        write(&path)?;
    }
    check::takes(&*source::load(&path)?, Defaults::Safe)?;
    let is_demonstration = FILES
        .iter()
        .all(|(name, text)| std::fs::read(path.join(name)).is_ok_and(|found| found == written(text).as_bytes()));
    Ok(Served { path, is_demonstration })
}

/// Whether there is no such directory, or it is empty but for hidden files. What has the name of a file is none.
fn holds_nothing(path: &Path) -> bool {
    match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().all(|entry| entry.file_name().as_encoded_bytes().starts_with(b".")),
        Err(error) => error.kind() == io::ErrorKind::NotFound && path.extension().is_none(),
    }
}

fn write(directory: &Path) -> Result<(), QuickstartError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| QuickstartError::Write(path, error)
    };
    std::fs::create_dir_all(directory).map_err(failed(directory))?;
    let schema = directory.join(SCHEMA);
    std::fs::write(&schema, format!("{:#}\n", short::schema())).map_err(failed(&schema))?;
    for (name, text) in FILES {
        let path = directory.join(name);
        let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
        file.and_then(|mut file| file.write_all(written(text).as_bytes())).map_err(failed(&path))?;
    }
    Ok(())
}

fn written(text: &str) -> String {
    text.replace(SCHEMA_OF_REPOSITORY, SCHEMA)
}

impl Served {
    /// Prints what to try.
    pub fn announce(&self, admin: SocketAddr) {
        if !self.is_demonstration {
            return println!(
                "tidegate: serving {path} as it is there, admin on http://{admin}

Edit it while it runs: the traffic follows within a second. What is wrong is told here, and changes nothing.
Ctrl-C drains and ends; a second one does not wait.",
                path = self.path.display()
            );
        }
        println!(
            "tidegate: gateway on http://127.0.0.1:10000, admin on http://{admin}

Try:
  curl -s http://127.0.0.1:10000/                        a page that says what there is
  curl -s http://127.0.0.1:10000/split                   4 of 5 from demo-a, the others from demo-b
  curl -s -H 'x-demo: b' http://127.0.0.1:10000/split    always from demo-b
  for i in 1 2 3 4 5 6; do curl -s -o /dev/null -w '%{{http_code}}\\n' http://127.0.0.1:10000/limited; done
                                                         5 in 10 seconds, then 429
  curl -s http://{admin}/clusters                 what the gateway knows of its upstreams

Then edit {file}, and the traffic changes: within a second, without losing a request.
What is wrong is told here with its line, and changes nothing. `tidegate expand {path}` shows what it stands for.

Ctrl-C drains and ends; a second one does not wait.",
            file = self.path.join(GATEWAY).display(),
            path = self.path.display()
        );
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// An address that cannot be bound.
    pub async fn run(self, admin: SocketAddr, options: Options) -> Result<(), QuickstartError> {
        // Whoever comes before it accepts waits in the queue.
        let clients = TcpListener::bind("127.0.0.1:0").await.map_err(QuickstartError::Listen)?;
        let control = clients.local_addr().map_err(QuickstartError::Listen)?;
        let bootstrap = Bootstrap::asking(control, admin).map_err(StartError::Configuration)?;
        let listen = Listen { clients, admin: None, tokens: Vec::new(), tls: None, store: None };
        let control_plane = run::run(Checked(Directory::new(self.path, [])), listen, std::future::pending());
        tokio::select! {
            ended = server::run(bootstrap, options) => Ok(ended?),
            ended = control_plane => {
                ended?;
                Err(QuickstartError::Ended)
            }
        }
    }
}

/// A directory of which only what the gateway takes is served: all that is wrong is told with its place.
struct Checked(Directory);

impl Source for Checked {
    async fn next(&mut self) -> Result<Arc<Sets>, Refused> {
        let sets = self.0.next().await?;
        check::takes(&sets, Defaults::Safe)?;
        Ok(sets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("tidegate-quickstart-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn the_demonstration_is_written_where_nothing_is_and_nowhere_else() {
        let directory = scratch("write");
        assert!(prepare(Some(directory.clone())).unwrap().is_demonstration);
        let file = directory.join(GATEWAY);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("$schema=.tidegate.schema.json\n") && directory.join(SCHEMA).exists());
        let edited = text.replace("demo-a: 80", "demo-a: 1");
        std::fs::write(&file, &edited).unwrap();
        std::fs::remove_file(directory.join(FILES[1].0)).unwrap();
        assert!(!prepare(Some(directory.clone())).unwrap().is_demonstration);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), edited);
        assert!(!directory.join(FILES[1].0).exists());
        let absent = prepare(Some(directory.join("absent.yaml"))).unwrap_err().to_string();
        assert!(absent.contains("absent.yaml: ") && !directory.join("absent.yaml").exists(), "{absent}");
        // A file is served as it is, too; one that is wrong is refused before anything starts.
        assert!(!prepare(Some(file.clone())).unwrap().is_demonstration);
        std::fs::write(&file, edited.replace("to: demo-b", "to: demo-c")).unwrap();
        let refused = prepare(Some(directory.clone())).unwrap_err().to_string();
        assert!(refused.starts_with("gateway.yaml:") && refused.contains("did you mean 'demo-a'?"), "{refused}");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
