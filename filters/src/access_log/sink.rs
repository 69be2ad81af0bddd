//! Files that lines are appended to: one for each path in the process, written by a thread of its own.
//! It must not know what a line says. Whoever logs never waits for a disk: lines wait in bounded buffers, and those that
//! do not fit are dropped and counted.

use std::cell::Cell;
use std::fs::{self, File, Metadata};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tidegate_stats::{Scope, stats_block};

stats_block! {
    /// Envoy's `filesystem.` stats.
    struct FileStats {
        counters { write_buffered, write_completed, write_failed, flushed_by_timer, reopen_failed }
        gauges { write_total_buffered }
        histograms { }
    }
}

stats_block! {
    /// `access_logs.`: ours, since Envoy's lines wait without a bound.
    struct DropStats {
        counters { lines_dropped }
        gauges { }
        histograms { }
    }
}

/// Makes the names of the stats appear before there is a file.
pub fn register_stats(root: &Scope) -> impl Send + Sync + use<> {
    FileStats::new(&root.scope("filesystem."))
}

/// Bytes of lines that one file may have waiting.
const MAX_BUFFERED_BYTES: usize = 8 << 20;

/// A buffer that grew beyond this is given back once it is written.
const KEPT_BYTES: usize = 1 << 20;

/// Threads that append to one file without meeting one another.
const MAX_SHARDS: usize = 8;

/// `--file-flush-interval-msec`.
static FLUSH_INTERVAL_MILLIS: AtomicU64 = AtomicU64::new(10_000);

/// `--file-flush-min-size-kb`, in bytes.
static FLUSH_MIN_BYTES: AtomicUsize = AtomicUsize::new(64 << 10);

/// Every open file. A file is shared by all who log to it and closed with the last of them.
static OPEN: Mutex<Vec<(Destination, Weak<Sink>)>> = Mutex::new(Vec::new());

/// Sets how often buffered lines are written at the latest.
pub fn set_flush_interval(interval: Duration) {
    FLUSH_INTERVAL_MILLIS.store(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1), Relaxed);
    open_sinks().iter().for_each(|sink| sink.shared.wake());
}

/// Sets from how many buffered bytes on lines are written before the interval is over.
pub fn set_flush_min_size(bytes: usize) {
    FLUSH_MIN_BYTES.store(bytes, Relaxed);
}

/// Opens every log file anew under its path, before it is written next: after they were moved away.
pub fn reopen_all() {
    for sink in open_sinks() {
        sink.shared.reopen.store(true, Relaxed);
        sink.shared.wake();
    }
}

/// Writes what is buffered, in all files; returns when it is done. For the end of the process.
pub fn flush_all() {
    for sink in open_sinks() {
        sink.shared.flush(Flush::Everything);
    }
}

fn open_sinks() -> Vec<Arc<Sink>> {
    OPEN.lock().iter().filter_map(|(_, sink)| sink.upgrade()).collect()
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    File(PathBuf),
    Stdout,
    Stderr,
}

impl Destination {
    /// The standard stream that this leads to, where that is a pipe, a terminal or a socket: it has one writer then, so that
    /// lines stay whole. A regular file is opened by its path, and again after it was moved.
    fn resolved(self) -> Self {
        let place = match &self {
            Self::File(path) => fs::metadata(path),
            Self::Stdout => return self,
            Self::Stderr => metadata(io::stderr().as_fd()),
        };
        let Some(place) = place.ok().filter(|place| !place.is_file()) else { return self };
        let is = |stream: io::Result<Metadata>| {
            stream.is_ok_and(|stream| (stream.dev(), stream.ino()) == (place.dev(), place.ino()))
        };
        if is(metadata(io::stdout().as_fd())) {
            Self::Stdout
        } else if is(metadata(io::stderr().as_fd())) {
            Self::Stderr
        } else {
            self
        }
    }

    fn open(&self) -> io::Result<Target> {
        match self {
            Self::File(path) => File::options().append(true).create(true).open(path).map(Target::File),
            Self::Stdout => Ok(Target::Stdout),
            Self::Stderr => Ok(Target::Stderr),
        }
    }
}

/// What a stream leads to.
fn metadata(stream: BorrowedFd<'_>) -> io::Result<Metadata> {
    File::from(stream.try_clone_to_owned()?).metadata()
}

enum Target {
    File(File),
    Stdout,
    Stderr,
}

impl Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_all(bytes),
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes)?;
                stdout.flush()
            }
            Self::Stderr => io::stderr().lock().write_all(bytes),
        }
    }
}

/// An open file, as those who log hold it. The last one to let go ends its thread, which writes what is left.
pub(super) struct Sink {
    shared: Arc<Shared>,
}

struct Shared {
    destination: Destination,
    shards: Box<[Mutex<Vec<u8>>]>,
    writer: Mutex<Writer>,
    reopen: AtomicBool,
    closed: AtomicBool,
    thread: OnceLock<Thread>,
    stats: FileStats,
    drops: DropStats,
}

struct Writer {
    target: Target,
    /// What was swapped out of a shard, and is on its way.
    batch: Vec<u8>,
}

/// Which shards are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flush {
    /// Those that hold enough.
    Full {
        min_bytes: usize,
    },
    Everything,
}

thread_local! {
    static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// A number of this thread's own.
fn shard_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    SHARD.get().unwrap_or_else(|| {
        let shard = NEXT.fetch_add(1, Relaxed);
        SHARD.set(Some(shard));
        shard
    })
}

impl Sink {
    /// The sink of this destination: the one that is open already, or a new one.
    ///
    /// # Errors
    /// A file that cannot be opened or created.
    pub(super) fn open(destination: Destination, scope: &Scope) -> io::Result<Arc<Self>> {
        let destination = destination.resolved();
        let mut open = OPEN.lock();
        open.retain(|(_, sink)| sink.strong_count() > 0);
        let known = open.iter().find(|(known, _)| *known == destination);
        if let Some(sink) = known.and_then(|(_, sink)| sink.upgrade()) {
            return Ok(sink);
        }
        let shards = thread::available_parallelism().map_or(1, usize::from).min(MAX_SHARDS);
        let shared = Arc::new(Shared {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            writer: Mutex::new(Writer { target: destination.open()?, batch: Vec::new() }),
            destination: destination.clone(),
            reopen: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            thread: OnceLock::new(),
            stats: FileStats::new(&scope.root().scope("filesystem.")),
            drops: DropStats::new(&scope.root().scope("access_logs.")),
        });
        let handle = thread::Builder::new().name("access-log".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.run()
        })?;
        // The thread ends by `closed`; nobody needs to wait for it.
        let _set_once = shared.thread.set(handle.thread().clone());
        let sink = Arc::new(Self { shared });
        open.push((destination, Arc::downgrade(&sink)));
        Ok(sink)
    }

    /// Appends what `render` writes: whole, or not at all when the buffer is full.
    pub(super) fn append(&self, render: impl FnOnce(&mut Vec<u8>)) {
        self.shared.append(render);
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.closed.store(true, Relaxed);
        self.shared.wake();
    }
}

impl Shared {
    fn append(&self, render: impl FnOnce(&mut Vec<u8>)) {
        let mut buffer = self.shards[shard_of_thread() % self.shards.len()].lock();
        let before = buffer.len();
        if before > MAX_BUFFERED_BYTES / self.shards.len() {
            return self.drops.lines_dropped().inc();
        }
        render(&mut buffer);
        let after = buffer.len();
        drop(buffer);
        self.stats.write_buffered().inc();
        self.stats.write_total_buffered().add(i64::try_from(after - before).unwrap_or(0));
        let min_bytes = FLUSH_MIN_BYTES.load(Relaxed);
        if before < min_bytes && after >= min_bytes {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// The life of the file's thread.
    fn run(&self) {
        let mut last = Instant::now();
        while !self.closed.load(Relaxed) {
            let interval = Duration::from_millis(FLUSH_INTERVAL_MILLIS.load(Relaxed));
            thread::park_timeout(interval.saturating_sub(last.elapsed()));
            if last.elapsed() >= interval {
                last = Instant::now();
                self.stats.flushed_by_timer().inc();
                self.flush(Flush::Everything);
            } else {
                self.flush(Flush::Full { min_bytes: FLUSH_MIN_BYTES.load(Relaxed) });
            }
        }
        self.flush(Flush::Everything);
    }

    fn flush(&self, which: Flush) {
        let mut writer = self.writer.lock();
        if self.reopen.swap(false, Relaxed) {
            match self.destination.open() {
                Ok(target) => writer.target = target,
                // The old one is still there; it is tried again with the next flush.
                Err(_) => {
                    self.stats.reopen_failed().inc();
                    self.reopen.store(true, Relaxed);
                }
            }
        }
        for shard in &self.shards {
            let mut buffer = shard.lock();
            if buffer.is_empty() || matches!(which, Flush::Full { min_bytes } if buffer.len() < min_bytes) {
                continue;
            }
            std::mem::swap(&mut *buffer, &mut writer.batch);
            drop(buffer);
            self.write(&mut writer);
        }
    }

    fn write(&self, writer: &mut Writer) {
        let Writer { target, batch } = writer;
        match target.write(batch) {
            Ok(()) => self.stats.write_completed().inc(),
            Err(_) => self.stats.write_failed().inc(),
        }
        self.stats.write_total_buffered().add(-i64::try_from(batch.len()).unwrap_or(0));
        batch.clear();
        batch.shrink_to(KEPT_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use tidegate_stats::Store;

    use super::*;

    fn path(name: &str) -> PathBuf {
        let name = format!("tidegate-sink-{}-{name}-{}", std::process::id(), rand::random::<u32>());
        std::env::temp_dir().join(name)
    }

    fn append(sink: &Sink, line: &str) {
        sink.append(|out| out.extend_from_slice(line.as_bytes()));
    }

    #[test]
    fn lines_of_all_threads_are_written() {
        let path = path("threads");
        let store = Store::new();
        let sink = Sink::open(Destination::File(path.clone()), &store.root().scope("listener")).unwrap();
        let again = Sink::open(Destination::File(path.clone()), &store.root()).unwrap();
        assert!(Arc::ptr_eq(&sink, &again));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|n| append(&sink, &format!("line {n}\n"))));
            }
        });
        sink.shared.flush(Flush::Everything);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 4000);
        assert!(text.lines().all(|line| line.starts_with("line ")));
        assert_eq!(sink.shared.stats.write_buffered().value(), 4000);
        assert_eq!(sink.shared.stats.write_total_buffered().value(), 0);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_moved_file_is_opened_anew() {
        let (old, moved) = (path("reopen"), path("moved"));
        let sink = Sink::open(Destination::File(old.clone()), &Store::new().root()).unwrap();
        append(&sink, "one\n");
        sink.shared.flush(Flush::Everything);
        fs::rename(&old, &moved).unwrap();
        append(&sink, "two\n");
        sink.shared.flush(Flush::Everything);
        assert_eq!(fs::read_to_string(&moved).unwrap(), "one\ntwo\n");
        sink.shared.reopen.store(true, Relaxed);
        append(&sink, "three\n");
        sink.shared.flush(Flush::Everything);
        assert_eq!(fs::read_to_string(&old).unwrap(), "three\n");
        fs::remove_file(&old).unwrap();
        fs::remove_file(&moved).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let path = path("full");
        let sink = Sink::open(Destination::File(path.clone()), &Store::new().root()).unwrap();
        // The disk does not keep up: the writer is held.
        let writer = sink.shared.writer.lock();
        let line = "x".repeat(1 << 20);
        for _ in 0..20 {
            append(&sink, &line);
        }
        let kept = sink.shared.stats.write_buffered().value();
        assert_eq!(sink.shared.drops.lines_dropped().value() + kept, 20);
        assert!(kept <= 9, "{kept}");
        drop(writer);
        sink.shared.flush(Flush::Everything);
        assert_eq!(fs::metadata(&path).unwrap().len(), kept << 20);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error() {
        let destination = Destination::File(PathBuf::from("/nonexistent/directory/log"));
        assert_eq!(Sink::open(destination, &Store::new().root()).err().unwrap().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_full_buffer_is_written_before_the_interval_is_over() {
        let path = path("size");
        let sink = Sink::open(Destination::File(path.clone()), &Store::new().root()).unwrap();
        append(&sink, &"x".repeat(64 << 10));
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::metadata(&path).unwrap().len() == 0 && Instant::now() < deadline {
            thread::yield_now();
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), 64 << 10);
        fs::remove_file(&path).unwrap();
    }
}
