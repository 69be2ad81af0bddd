"""The page of every difference from Envoy that a case accepts, made from the cases' own `may_differ`.

Grouped by reason, since one reason shows in several places: a refused request differs in its answer, its log line and its counters.
"""

import re

from .environment import LOADTESTS

PAGE = LOADTESTS / "DIFFERENCES.md"
HEAD = """# Accepted differences from Envoy

Where tidegate behaves otherwise than Envoy on purpose, or where the two cannot be equal by nature. Each row is proved by the cases that it names:
the suite compares everything else in them. Made by `python3 loadtests/differential.py --differences > loadtests/DIFFERENCES.md`; a test
keeps it fresh. The cases that differ and should not are in [known_differences.txt](known_differences.txt).

| why | what differs | cases |
|---|---|---|
"""


def page(cases):
    """The whole file, from cases in order."""
    groups = {}
    for case in cases:
        for entry in case.get("may_differ", []):
            places, names = groups.setdefault(" ".join(entry["reason"].split()), ([], []))
            place = _place(entry["what"])
            places += [place] if place not in places else []
            names += [case.name] if case.name not in names else []
    rows = [f"| {_cell(why)} | {', '.join(_widest(places))} | {', '.join(f'`{name}`' for name in names)} |" for why, (places, names) in groups.items()]
    return HEAD + "\n".join(rows) + "\n"


def _widest(places):
    """A whole answer holds its parts."""
    return [place for place in places if not ("answer" in places and place.startswith("response "))]


def _place(what):
    """`requests[3].response.headers.x*` -> `response header x*`: which step it is does not matter here."""
    what = re.sub(r"\[[^\]]*\]", "", what)
    if re.fullmatch(r"requests\*?", what):
        return "answer"
    what = re.sub(r"^requests\.?", "", what)
    what = re.sub(r"^upstream\*", "what the upstream is sent", what)
    what = re.sub(r"^upstream\.\w+", "upstream request", what)
    what = re.sub(r"^response\*", "answer", what)
    what = re.sub(r"^stats\*", "counters", what)
    what = re.sub(r"^log\*?$", "access log", what)
    return _cell(what.replace("headers.", "header ").replace(".", " "))


def _cell(text):
    return text.replace("|", "\\|").replace("*", "\\*")
