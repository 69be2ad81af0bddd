#!/usr/bin/env python3
"""Runs the real Envoy and tidegate side by side on the same configuration and requests, and says where they differ.

Each case is a file under cases/. Both proxies run the same generated file, one after the other on the same ports, so that
what a case compares can only come from the proxy. Nothing is expected from a stored answer: Envoy answers in the same run.
known_differences.txt lists the cases that differ still; it only shrinks. Ends with 0 when every other case is equal or differs only
where it says so, 1 when one differs or a listed one is equal now, 2 when a case itself is wrong.
"""

import argparse
import asyncio
import collections
import json
import os
import re
import shutil
import sys
import time
import traceback
from pathlib import Path

from harness import environment

environment.enter()

from harness import accepted as accepted_of, case as cases_of, compare, known as known_of, oracle_must, side, template  # noqa: E402
from harness.process import free_port  # noqa: E402
from harness.upstream import Upstreams  # noqa: E402

AGAIN = 1
RUN = environment.CACHE / "run" / str(os.getpid())


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--subject", help="the tidegate binary (default: the newest in target/); `envoy` runs the oracle on both sides")
    parser.add_argument("--case", help="a glob over names such as `retries/*`, or a part of a name")
    parser.add_argument("--short", action="store_true", help="only the cases marked `short` (about a minute)")
    parser.add_argument("--needs", default="", help="features the subject has (tls,jwt,...), or `all`; cases that need others are skipped")
    parser.add_argument("--known", type=Path, default=known_of.LIST, help="the list of cases that differ still")
    parser.add_argument("--json", help="writes what was seen and found to this file")
    parser.add_argument("--list", action="store_true", help="prints the cases and ends")
    parser.add_argument("--differences", action="store_true", help="prints DIFFERENCES.md, the page of every accepted difference, and ends")
    parser.add_argument("--without", default="", help="log, stats: leaves those out, to compare the rest while a subject lacks them")
    parser.add_argument("--jobs", type=int, default=2, help="how many cases run at a time")
    parser.add_argument("--show", action="store_true", help="prints what the oracle answered (to write a case)")
    return parser.parse_args()


async def judged(group, binaries):
    """[(case, (verdict, lines, accepted), (oracle, subject))]. What time alone may have changed is run once more.

    So is a case that the oracle itself did not keep, for which the subject cannot be blamed, and any difference that was seen
    while the machine had more to do than it can: timeouts of tenths of a second mean nothing then. Any other stands.
    """
    outcomes = await run_group(group, binaries)
    for _ in range(AGAIN):
        verdicts = [judge(*outcome) for outcome in outcomes]
        unsure = [verdict in ("different", "mistake") and (late or is_busy()) for verdict, _, _, late in verdicts]
        if not any(unsure):
            break
        outcomes = [new if again else old for old, new, again in zip(outcomes, await run_group(group, binaries), unsure)]
    return [(case, judge(case, *sides)[:3], tuple(sides)) for case, *sides in outcomes]


def is_busy():
    """Whether more is waiting to run than there are processors."""
    return os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)


async def run_group(group, binaries):
    """[(case, observation of the oracle, of the subject)] of cases that share one start."""
    directory = RUN / group[0].name.replace("/", "-")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    first = group[0]
    ports = {"admin": free_port(), "listen": free_port(), **{name: free_port() for name in first.get("ports", [])}}
    async with Upstreams(first.get("upstreams", {"up": {}})) as upstreams:
        sides = []
        for binary in binaries:
            if first.get("validate"):
                sides.append([await side.validate(first, binary, {**ports, **upstreams.ports}, directory)])
            else:
                sides.append(await side.run_group(group, binary, upstreams, ports, directory))
                upstreams.drop_connections()
    shutil.rmtree(directory, ignore_errors=True)
    return list(zip(group, *sides))


def judge(case, oracle, subject):
    """(verdict, lines, accepted differences, whether time alone may be to blame): equal | accepted | different | mistake."""
    if not oracle.get("ran", True):
        wrong = [oracle["said"]]
    elif oracle.get("started") is False and case.get("oracle_must", {}).get("started") is not False:
        wrong = [f"the oracle does not start: {oracle['said']}"]
    else:
        wrong = oracle_must.broken(case, oracle)
    if wrong:
        return "mistake", wrong, [], True
    if subject.get("ran", True) is False or subject.get("started") != oracle.get("started"):
        return "different", [f"the subject did not run: {subject.get('said')}"], [], bool(subject) and "not ready after" in str(subject.get("said"))
    hidden = {"said"}
    found = compare.differences(*({key: value for key, value in one.items() if key not in hidden} for one in (oracle, subject)), case)
    if case.get("validate") and any(difference.reason is None for difference in found):
        found.append(compare.Difference("what was said", oracle["said"], subject["said"]))
    open_ones = [difference for difference in found if difference.reason is None]
    accepted = [difference for difference in found if difference.reason is not None]
    verdict = "different" if open_ones else "accepted" if accepted else "equal"
    return verdict, [str(difference) for difference in open_ones], accepted, compare.of_time(open_ones)


def show(observed):
    """What the oracle answered, a line for each step, log line and statistic."""
    for index, step in enumerate(observed.get("requests", [])):
        print(f"    [{index}] {json.dumps(step['response'], default=str)}")
        for records in step.get("upstream", {}).values():
            for record in records:
                print(f"        -> {json.dumps(record, default=str)}")
    for line in observed.get("log", []):
        print(f"    log: {line}")
    print(f"    stats: {json.dumps(observed.get('stats', {}))}")
    print("    " + "\n    ".join(f"{key}: {value}" for key, value in observed.items() if key not in ("requests", "log", "stats")))


class Report:
    """Prints a line for each case as it comes, and the totals."""

    WORDS = {"equal": "equal", "accepted": "equal but", "known": "known", "different": "DIFFERENT", "mistake": "MISTAKE"}

    def __init__(self, total, known):
        self.total, self.known, self.results, self.start = total, known, [], time.monotonic()

    def add(self, case, verdict, lines, accepted, sides):
        if verdict == "different" and case.name in self.known:
            verdict = "known"
        self.results.append({"case": case.name, "verdict": verdict, "differences": lines, "oracle": sides[0], "subject": sides[1], "reason": _refusal(sides[1])})
        print(f"{self.WORDS[verdict]:10} {case.name}", flush=True)
        for line in lines:
            print(f"    {line}")
        for difference in accepted:
            print(f"    accepted: {difference.where}: {difference.reason}")

    def count(self, verdict):
        return sum(result["verdict"] == verdict for result in self.results)

    def end(self, skipped):
        print(
            f"\n{len(self.results)} cases in {time.monotonic() - self.start:.0f} s: {self.count('equal')} equal, "
            f"{self.count('accepted')} equal but for accepted differences, {self.count('known')} known to differ, {self.count('different')} different, "
            f"{self.count('mistake')} mistaken cases"
        )
        refused = collections.Counter(result["reason"] for result in self.results if result["reason"])
        if refused:
            print("the subject did not start, by what it said:")
            for reason, number in refused.most_common():
                print(f"  {number:4} {reason[:200]}")
        for need, names in sorted(skipped.items()):
            print(f"skipped {len(names)} that need {need} (--needs {need} runs them)")
        better = known_of.equal_now(self.known, {result["case"]: result["verdict"] for result in self.results})
        for name in better:
            print(f"{name} is equal now: take it off loadtests/{known_of.LIST.name}")
        for name in (result["case"] for result in self.results if result["verdict"] == "different"):
            print(f"{name} differs and is not on loadtests/{known_of.LIST.name}")
        return 2 if self.count("mistake") else 1 if self.count("different") or better else 0


def _refusal(subject):
    """Why the subject did not start: its last line, without positions."""
    if not subject or subject.get("started") is not False:
        return None
    line = re.sub(r"\[\d+\]|\(line.*\)", "", subject["said"].splitlines()[-1])
    return re.sub(r"^.*(?=not supported yet: )", "", line)


def choose(cases, have, subject_is_oracle):
    """(cases to run, {need: names skipped})."""
    chosen, skipped = [], {}
    for case in cases:
        missing = [need for need in case.get("needs", []) if not subject_is_oracle and have != {"all"} and need not in have]
        if missing:
            skipped.setdefault(missing[0], []).append(case.name)
        else:
            chosen.append(case)
    return chosen, skipped


def listed(options):
    """The known differences, where they count: not between two Envoys, nor where something is left out of what is compared."""
    if options.subject == "envoy" or options.without:
        return {}
    known = known_of.read(options.known)
    lost = known_of.without_case(known, (case.name for case in cases_of.load_all()))
    if lost:
        raise known_of.ListError(f"{options.known.name} names no case: {', '.join(lost)}")
    return known


async def main(options):
    cases = cases_of.load_all(options.case, options.short)
    if options.list:
        for case in cases:
            print(f"{case.name:52} {'short' if case.get('short') else '':6} {' '.join(str(case.get('why')).split())[:120]}")
        print(f"{len(cases)} cases")
        return 0
    if options.differences:
        print(accepted_of.page(cases), end="")
        return 0
    if not cases:
        print(f"no case matches {options.case!r}")
        return 2
    known = listed(options)
    template.WITH_LOGS = "log" not in options.without
    side.WITH_STATS = "stats" not in options.without
    binaries = [environment.oracle(), environment.subject(options.subject)]
    chosen, skipped = choose(cases, set(options.needs.split(",")), options.subject == "envoy")
    report, groups = Report(len(chosen), known), asyncio.Queue()
    for group in cases_of.groups(chosen):
        groups.put_nowait(group)

    async def worker():
        while not groups.empty():
            group = groups.get_nowait()
            try:
                outcomes = await judged(group, binaries)
            except Exception as error:  # one wrong case must not hide the others
                report.add(group[0], "mistake", traceback.format_exception(error)[-3:], [], (None, None))
                continue
            for case, verdict, sides in outcomes:
                report.add(case, *verdict, sides)
                if options.show:
                    show(sides[0])

    await asyncio.gather(*(worker() for _ in range(options.jobs)))
    shutil.rmtree(RUN, ignore_errors=True)
    code = report.end(skipped)
    if options.json:
        with open(options.json, "w") as out:
            json.dump(report.results, out, indent=1, default=str)
    return code


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(arguments())))
    except (cases_of.CaseError, known_of.ListError) as error:
        print(f"a case or the list is wrong: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
