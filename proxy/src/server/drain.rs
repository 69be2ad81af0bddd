//! How a process leaves: connections still come for a while, then sockets close, then what runs is finished.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::sync::watch;

use super::signals::Leave;
use super::{Came, Rhythm, Server};
use crate::listener::manager::DrainPlan;

/// How long after SIGTERM connections are expected to come although there are none; half of the drain time where that is less.
const STILL_COMING: Duration = Duration::from_secs(10);

impl Server {
    /// Half of the drain time connections still come and are told to leave, then sockets close and what runs is finished. Whoever
    /// asks once more does not wait. Hosts and routes are followed meanwhile: what runs is not to be sent to who has left.
    pub(super) async fn drain(
        &mut self,
        leave: Leave,
        drain_time: Duration,
        rhythm: &mut Rhythm,
        quitting: &mut watch::Receiver<Leave>,
    ) {
        self.shared.set_health_check_failing(true);
        self.manager.leave();
        let half = drain_time / 2;
        self.manager.begin_drain(false, DrainPlan { lasts: half, immediate: true });
        // From here on every response says that its connection ends.
        tracing::info!("draining");
        let still_coming = if leave == Leave::Politely { half.min(STILL_COMING) } else { Duration::ZERO };
        tokio::select! {
            _ = self.drain_in_peace(still_coming, half, rhythm) => {}
            _ = quitting.changed() => {}
        }
        self.manager.cut();
        self.manager.shut_down();
    }

    /// Sockets stay open for `still_coming` whatever comes, and for `half` while there are connections. It breaks off where
    /// `/quitquitquit` is asked for.
    async fn drain_in_peace(&mut self, still_coming: Duration, half: Duration, rhythm: &mut Rhythm) -> ControlFlow<()> {
        self.follow_until(tokio::time::sleep(still_coming), rhythm).await?;
        let idle = self.manager.idle();
        self.follow_until(within(half.saturating_sub(still_coming), idle), rhythm).await?;
        self.manager.stop_listeners(false);
        let idle = self.manager.idle();
        self.follow_until(within(self.plan.lasts.saturating_sub(half), idle), rhythm).await
    }

    /// Follows what comes, but with the sockets: those of a process that leaves stay as they are.
    async fn follow_until(&mut self, done: impl Future<Output = ()>, rhythm: &mut Rhythm) -> ControlFlow<()> {
        let mut done = std::pin::pin!(done);
        loop {
            tokio::select! {
                () = &mut done => return ControlFlow::Continue(()),
                came = self.follow(rhythm) => if came == Came::Quit {
                    return ControlFlow::Break(());
                },
            }
        }
    }
}

async fn within(limit: Duration, what: impl Future<Output = ()>) {
    // Whether it came to its end or not is no matter to whoever waits this long.
    let _ = tokio::time::timeout(limit, what).await;
}
