//! The signals by which a process is told to leave, or to open its logs again.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// What Envoy says of SIGHUP, which others take for a wish to read files again, and which a terminal sends that goes away.
pub(crate) const HANG_UP: &str = "caught and eating SIGHUP. See documentation for how to hot restart.";

/// How a process leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// SIGTERM: whoever sends connections here learns of it late (Kubernetes), so sockets stay open although nobody comes.
    Politely,
    /// SIGINT and `/quitquitquit`: as soon as nobody is here.
    WhenIdle,
}

/// The signals that a process listens for. From the moment they are registered none is lost.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reopen: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(super) fn register() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reopen: signal(SignalKind::user_defined1())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    pub(super) async fn listen(mut self, quit: watch::Sender<Leave>) {
        loop {
            let leave = tokio::select! {
                _ = self.terminate.recv() => Leave::Politely,
                _ = self.interrupt.recv() => Leave::WhenIdle,
                _ = self.reopen.recv() => {
                    tidegate_filters::access_log::reopen_all();
                    continue;
                }
                _ = self.hang_up.recv() => {
                    tracing::warn!("{}", HANG_UP);
                    continue;
                }
            };
            // Nobody listens only when the process is ending already.
            let _ = quit.send(leave);
        }
    }
}
