"""The list of cases that still differ, a ratchet: a case may leave it and none may join it unseen.

It knows names and verdicts, not what a case compares.
"""

from .environment import LOADTESTS

LIST = LOADTESTS / "known_differences.txt"


class ListError(Exception):
    """The list is not what it must be."""


def read(path=LIST):
    """{case: why it differs still} from lines such as `area/name: why`; `#` begins a comment line."""
    known = {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, why = line.partition(":")
        if not why.strip() or "/" not in name or " " in name:
            raise ListError(f"{path.name}, line {number}: not `area/name: why`")
        if known and name <= list(known)[-1]:
            raise ListError(f"{path.name}, line {number}: {name} is not in alphabetical order")
        known[name] = why.strip()
    return known


def without_case(known, cases):
    """Listed names that no case has: a case was renamed or taken away."""
    return sorted(set(known) - set(cases))


def equal_now(known, verdicts):
    """Listed cases that ran and do not differ any more."""
    return sorted(name for name in known if verdicts.get(name) in ("equal", "accepted"))
