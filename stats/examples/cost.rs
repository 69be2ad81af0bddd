//! What counting costs: nanoseconds an operation on a worker and beside it, and bytes an untouched block takes.
//! `cargo run --release -p tidegate-stats --example cost`

use std::hint::black_box;
use std::time::Instant;

use tidegate_stats::{Store, Unit, enter_worker, reserve_workers, stats_block};

stats_block! {
    struct Sample {
        counters { rq_total, rq_2xx, rq_5xx }
        gauges { rq_active }
        histograms { rq_time: Milliseconds }
    }
}

fn time(what: &str, operation: impl Fn(u64)) {
    const ROUNDS: u64 = 50_000_000;
    let start = Instant::now();
    for round in 0..ROUNDS {
        operation(black_box(round));
    }
    println!("{what:32} {:6.2} ns", start.elapsed().as_nanos() as f64 / ROUNDS as f64);
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    status.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn main() {
    const BLOCKS: u64 = 200_000;
    reserve_workers(4);
    let store = Store::new();
    let before = resident_bytes();
    let blocks: Vec<_> = (0..BLOCKS).map(|n| Sample::new(&store.root().scope(&format!("{n:016}.")))).collect();
    let own = 17 + size_of::<Sample>() as u64;
    println!("{:32} {:6} bytes", "untouched block, without prefix", (resident_bytes() - before) / BLOCKS - own);

    let sample = &blocks[0];
    let scope = store.root().scope("named.");
    let (counter, histogram) = (scope.counter("upstream_rq_503"), scope.histogram("time", Unit::Milliseconds));
    for place in ["shared", "worker"] {
        if place == "worker" {
            enter_worker(0);
        }
        time(&format!("{place}: counter"), |_| sample.rq_total().inc());
        time(&format!("{place}: gauge"), |_| sample.rq_active().inc());
        time(&format!("{place}: named counter"), |_| counter.inc());
        time(&format!("{place}: histogram"), |round| histogram.record(round & 0xffff));
        time(&format!("{place}: counter by its name"), |_| scope.counter("upstream_rq_503").inc());
    }
}
