#!/usr/bin/env python3
"""Loads the real configurations of ../shared/corpus with `--mode validate` and counts what tidegate takes.

Every `reject` file must be refused with an error that names a field; no `accept` file may fail in decoding or validation. What
is refused as `not supported yet: X` is counted by X. An `accept` file that loads and has an HTTP listener is also served, by Envoy and
by tidegate, and requests must get the same answers over the same connections; of a file with TLS contexts also the parts that have
them, alone, whether or not the rest loads. Ends with 1 when one of these rules is broken.
"""

import argparse
import asyncio
import collections
import concurrent.futures
import csv
import json
import os
import re
import shutil
import subprocess
import sys

from harness import environment

environment.enter()

from harness import certificates, corpus_probe  # noqa: E402
from harness.process import behaviour_flags  # noqa: E402

NOT_YET = re.compile(r"not supported yet: *(\S+)")
NAMES_A_FIELD = re.compile(r"[a-z][a-z0-9_]*(\[\d+\])?(\.[a-z][a-z0-9_]*(\[\d+\])?)+|field|\$\.|ValidationError\.|\.[a-z_]+:")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--subject", help="the tidegate binary (default: the newest in target/), or `envoy`")
    parser.add_argument("--file", default="", help="only files whose name holds this text")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", help="writes every result to this file")
    parser.add_argument("--no-serve", action="store_true", help="only loads the files, serves none")
    parser.add_argument("--verbose", action="store_true", help="prints a line for every file")
    return parser.parse_args()


class Corpus:
    """The manifest, and the files with `@CORPUS@` filled in."""

    def __init__(self, shared):
        self.folder = shared / "corpus"
        self.work = environment.CACHE / f"corpus-{os.getpid()}"
        shutil.rmtree(self.work, ignore_errors=True)
        made = certificates.authority(self.work / "_files" / "certs")
        certificates.sds_files(self.work / "_files" / "sds", made)
        with open(self.folder / "MANIFEST.tsv") as manifest:
            self.rows = [row for row in csv.DictReader(manifest, delimiter="\t", quoting=csv.QUOTE_NONE)]

    def prepared(self, name):
        text = (self.folder / name).read_text().replace("@CORPUS@", str(self.work))
        target = self.work / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target


def validate(binary, path):
    """(verdict, what was said): accepted | not yet | refused | crashed | slow."""
    command = [binary, *behaviour_flags(binary), "--mode", "validate", "-c", path, "--service-node", "node", "--service-cluster", "cluster", "-l", "error"]
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace", timeout=30, cwd=path.parent)
    except subprocess.TimeoutExpired:
        return "slow", "no answer in 30 s"
    said = (done.stdout + done.stderr).strip()
    if done.returncode == 0:
        return "accepted", said
    if done.returncode < 0 or done.returncode == 101 or "panicked at" in said:
        return "crashed", said
    return ("not yet" if NOT_YET.search(said) else "refused"), said


def judge(expect, verdict, said):
    """The line of the summary that a file counts in."""
    if verdict in ("crashed", "slow"):
        return verdict
    if expect == "accept":
        return {"accepted": "loads", "not yet": "not yet", "refused": "WRONGLY REFUSED"}[verdict]
    if verdict == "accepted":
        return "WRONGLY ACCEPTED"
    return "refused" if verdict == "not yet" or NAMES_A_FIELD.search(said) else "refused without a field"


async def serve(results, corpus, binaries, jobs):
    """{(file, kind): (oracle, subject) or why it was not tried}: whole files that load, and the TLS parts of all that are taken."""
    found, waiting = {}, asyncio.Queue()
    for row, outcome, _ in results:
        if outcome in ("loads", "not yet") and row["expect"] == "accept":
            for kind, case in corpus_probe.cases_of(row["file"], (corpus.folder / row["file"]).read_text()).items():
                if outcome == "loads" or kind != "whole":
                    waiting.put_nowait((row["file"], kind, case))

    async def worker(number):
        while not waiting.empty():
            name, kind, case = waiting.get_nowait()
            try:
                found[name, kind] = case if isinstance(case, str) else await probe(case, binaries, corpus.work / f"_served{number}")
            except corpus_probe.NotServed as error:
                found[name, kind] = str(error)
            except Exception as error:  # one odd file must not hide the others
                found[name, kind] = f"{type(error).__name__}: {error}"

    await asyncio.gather(*(worker(number) for number in range(jobs)))
    return found


async def probe(case, binaries, directory):
    """Again, twice at most, where the two differ and one ran into a time limit: then the machine was too busy to say anything."""
    for _ in range(3):
        answers = await corpus_probe.probe(case, binaries, directory)
        if answers[0] == answers[1] or not re.search(r"timeout|not ready after", str(answers)):
            break
    return answers


def report_served(served, verbose):
    """True when nothing that both proxies serve was answered differently."""
    tried = {name: outcome for name, outcome in served.items() if isinstance(outcome, list)}
    not_yet = {name: outcome for name, outcome in tried.items() if NOT_YET.search(outcome[1].get("not served", ""))}
    judged = {name: outcome for name, outcome in tried.items() if name not in not_yet}
    different = {name: outcome for name, outcome in judged.items() if outcome[0] != outcome[1]}
    for kind in ("whole", "upstream TLS", "downstream TLS"):
        of_kind = [name for name in judged if name[1] == kind]
        print(f"served by both, {kind}: {len(of_kind)}, of them alike: {len([name for name in of_kind if name not in different])}")
    secure = {name for name, outcome in judged.items() if over_tls(outcome[0])}
    alike = {file for file, _ in secure} - {file for file, _ in different}
    print(f"files served over TLS: {len({file for file, _ in secure})}, of them alike in all: {len(alike)}")
    for name, (oracle, subject) in sorted(different.items()):
        print(f"  DIFFERENT {' '.join(name)}\n      envoy:   {oracle}\n      subject: {subject}")
    for name, kind in sorted(name for name in judged if name[1] != "whole" and name not in secure):
        print(f"  without a handshake: {kind} of {name}: {tried[name, kind][0]}")
    reasons = collections.defaultdict(list)
    for (name, kind), outcome in sorted(served.items()):
        if isinstance(outcome, str) or (name, kind) in not_yet:
            reasons[f"{kind}: {outcome if isinstance(outcome, str) else outcome[1]['not served']}"].append(name)
    for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
        print(f"  {len(names):4} not served ({names[0]}{', ...' * (len(names) > 1)}), {reason[:240]}")
    if verbose:
        for (name, kind), outcome in sorted(tried.items()):
            print(f"  {name} {kind}")
            for line in [*outcome[0].get("answers", []), *(f"{name}: {count}" for name, count in outcome[0].get("handshakes", {}).items())]:
                print(f"      {line[:300]}")
    return not different


def over_tls(outcome):
    """Whether there was a handshake, or a control plane was asked over TLS."""
    return bool(outcome.get("handshakes")) or any(" asked for " in line and '"tls"' in line for line in outcome["answers"])


def last_line(said):
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "(nothing)"


def report(results, verbose):
    counts = collections.Counter((row["expect"], outcome) for row, outcome, _ in results)
    missing = collections.Counter()
    for row, outcome, said in results:
        if outcome == "not yet":
            missing.update({re.sub(r"\[\d+\]", "[]", feature.rstrip(".,;")) for feature in NOT_YET.findall(said)})
        elif outcome not in ("loads", "refused") or verbose:
            print(f"{outcome:24} {row['file']}\n    {last_line(said)}")
    total = collections.Counter(row["expect"] for row, _, _ in results)
    print(f"\naccept files: {total['accept']}")
    for outcome in ("loads", "not yet", "WRONGLY REFUSED", "crashed", "slow"):
        print(f"  {outcome:24} {counts[('accept', outcome)]}")
    print(f"reject files: {total['reject']}")
    for outcome in ("refused", "refused without a field", "WRONGLY ACCEPTED", "crashed", "slow"):
        print(f"  {outcome:24} {counts[('reject', outcome)]}")
    if missing:
        print("not supported yet, by how many accept files:")
        for feature, number in missing.most_common():
            print(f"  {number:4} {feature}")
    good = counts[("accept", "loads")] + counts[("accept", "not yet")] + counts[("reject", "refused")]
    return 0 if good == len(results) else 1


def main():
    options = arguments()
    shared = environment.shared()
    if not shared:
        print("SKIPPED: the corpus is not here (expected at ../shared beside the repository, or where TIDEGATE_SHARED says)")
        return 0
    binary = environment.subject(options.subject)
    corpus = Corpus(shared)
    rows = [row for row in corpus.rows if options.file in row["file"]]

    def one(row):
        verdict, said = validate(binary, corpus.prepared(row["file"]))
        return row, judge(row["expect"], verdict, said), said

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(one, rows))
    served = None
    if not options.no_serve:
        served = asyncio.run(serve(results, corpus, [environment.oracle(), binary], options.jobs))
    shutil.rmtree(corpus.work, ignore_errors=True)
    if options.json:
        with open(options.json, "w") as out:
            json.dump([{"file": row["file"], "expect": row["expect"], "outcome": outcome, "said": said} for row, outcome, said in results], out, indent=1)
    code = report(results, options.verbose)
    return code if served is None or report_served(served, options.verbose) else 1


if __name__ == "__main__":
    sys.exit(main())
