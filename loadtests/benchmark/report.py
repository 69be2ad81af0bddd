"""Medians, ratios and spread of the rounds, as a table for the terminal and for RESULTS.md."""

import datetime
import math
import os
import platform
import statistics
import subprocess

COLUMNS = ["case", "peer", "CPU us/request", "ratio", "must", "requests/s", "p50 ms", "p99 ms", "spread", "MB after start", "MB peak"]


def summarise(case, rounds, memory):
    """{peer: numbers} of one case; the ratio is of median CPU to Envoy's."""
    rows = {}
    for peer, results in rounds.items():
        cpu = [result["cpu_us"] for result in results]
        rows[peer] = {
            "cpu_us": statistics.median(cpu),
            "spread": (max(cpu) - min(cpu)) / statistics.median(cpu),
            "rate": statistics.median(result["rate"] for result in results),
            "p50_ms": statistics.median(result["p50_ms"] for result in results),
            "p99_ms": statistics.median(result["p99_ms"] for result in results),
            **memory[peer],
        }
    for row in rows.values():
        row["ratio"] = row["cpu_us"] / rows["envoy"]["cpu_us"] if "envoy" in rows else None
    return rows


def lines(summaries):
    """Rows of text for all cases: [(case name, must, {peer: numbers})]."""
    made = [COLUMNS]
    for case, rows in summaries:
        for peer, row in rows.items():
            must = "" if case.must is None or peer != "tidegate" else f"<= {case.must}" + ("" if row["ratio"] and row["ratio"] <= case.must else " MISSED")
            made.append(
                [case.name, peer, f"{row['cpu_us']:.2f}", f"{row['ratio']:.2f}" if row["ratio"] else "", must, f"{row['rate']:.0f}"]
                + [_millis(row["p50_ms"]), _millis(row["p99_ms"]), f"{row['spread'] * 100:.0f} %", f"{row['start_mb']:.1f}", f"{row['peak_mb']:.1f}"]
            )
    return made


def _millis(time):
    return "-" if math.isnan(time) else f"{time:.2f}"


def text(table):
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths))) for row in table)


def markdown(table, commit, seconds, rounds, cases):
    rule = ["---", "---", *["---:"] * (len(table[0]) - 2)]
    rows = "\n".join("| " + " | ".join(row) + " |" for row in [table[0], rule, *table[1:]])
    what = "\n".join(f"- `{case.name}`: {case.what}" for case in cases)
    return f"""# Results

Written by `./dev bench` on {datetime.date.today()} at commit {commit}: {machine()}. Medians of {rounds} interleaved rounds of {seconds} s; one
worker pinned to one core, load and upstream on the other; stats on, an access log to a file. CPU is that of all threads, divided by the requests
answered; the ratio is to Envoy's; the spread is (highest - lowest) / median of the CPU.

{rows}

{what}
"""


def machine():
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} x {model}, Linux {platform.release()}"


def commit(repository):
    done = subprocess.run(["git", "-C", repository, "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
