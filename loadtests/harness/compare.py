"""Says where two observations differ, as paths such as `requests[0].response.status`, and which of it a case accepts."""

import dataclasses
import fnmatch
import math
import re


@dataclasses.dataclass
class Difference:
    where: str
    oracle: object
    subject: object
    reason: str | None = None

    def __str__(self):
        return f"{self.where}\n      envoy:   {_short(self.oracle)}\n      subject: {_short(self.subject)}"


ABSENT = "(absent)"


class Left(int):
    """Milliseconds that a try says are left, and when it says so: `passed` milliseconds after the first try."""

    passed = 0

    @classmethod
    def of(cls, value, passed):
        left = cls(value)
        left.passed = passed
        return left

    def agrees(self, other):
        """The same number but for a back-off's jitter; or, where one side's try came later, the same time to be over."""
        near = max(50, 0.02 * self)
        return abs(self - other) <= near or abs((self + self.passed) - (other + other.passed)) <= near


def differences(oracle, subject, case):
    """Differences of two whole observations; those that `may_differ` names carry its reason.

    An entry with `subject` accepts that one value of the subject's and no other.
    """
    found = [*_walk("", oracle, subject, case.get("statistical"))]
    for difference in found:
        for entry in case.get("may_differ", []):
            if fnmatch.fnmatchcase(difference.where, entry["what"].replace("[", "[[]")):
                if entry.get("subject", difference.subject) == difference.subject:
                    difference.reason = entry["reason"]
                break  # the first entry that names it decides
    return found


def of_time(found):
    """Whether all that differs may come from a machine that is too busy: durations, and answers that came too late."""
    late = re.compile(r"timeout: no whole answer|not ready after")
    return bool(found) and all(one.where.endswith(".seconds") or late.search(f"{one.oracle} {one.subject}") for one in found)


def _walk(where, oracle, subject, statistical):
    if where.endswith(".seconds"):
        if abs(oracle - subject) > 0.2 * max(oracle, subject) + 0.1:
            yield Difference(where, f"{oracle:.2f} s", f"{subject:.2f} s")
    elif isinstance(oracle, Left) and isinstance(subject, Left):
        if not oracle.agrees(subject):
            yield Difference(where, oracle, subject)
    elif where.endswith(".counts") and statistical is not None and isinstance(oracle, dict) and isinstance(subject, dict):
        yield from _statistical(where, oracle, subject, statistical)
    elif isinstance(oracle, dict) and isinstance(subject, dict):
        for key in [*oracle, *(key for key in subject if key not in oracle)]:
            yield from _walk(f"{where}.{key}".lstrip("."), oracle.get(key, ABSENT), subject.get(key, ABSENT), statistical)
    elif isinstance(oracle, list) and isinstance(subject, list) and where != "":
        for index in range(max(len(oracle), len(subject))):
            one = oracle[index] if index < len(oracle) else ABSENT
            other = subject[index] if index < len(subject) else ABSENT
            yield from _walk(f"{where}[{index}]", one, other, statistical)
    elif oracle != subject:
        yield Difference(where, oracle, subject)


def _statistical(where, oracle, subject, settings):
    """Two samples of one distribution? And, where the case says the weights, each against them. p > 0.001 by default."""
    least = settings.get("p", 0.001)
    p = chi_squared_two(oracle, subject)
    if p <= least:
        yield Difference(f"{where} (p={p:.2g} that both are one distribution)", oracle, subject)
    if "weights" in settings:
        p = chi_squared_weights(subject, settings["weights"])
        if p <= least:
            yield Difference(f"{where} (p={p:.2g} against the weights)", settings["weights"], subject)


def chi_squared_two(one, other):
    names = sorted(set(one) | set(other))
    total_one, total_other = sum(one.values()), sum(other.values())
    if not total_one or not total_other:
        return 1.0 if total_one == total_other else 0.0
    scale = math.sqrt(total_other / total_one)
    value = 0.0
    for name in names:
        a, b = one.get(name, 0), other.get(name, 0)
        value += (a * scale - b / scale) ** 2 / (a + b)
    freedom = len(names) - (1 if total_one == total_other else 0)
    return chi_squared_tail(value, max(1, freedom))


def chi_squared_weights(counts, weights):
    total, whole = sum(counts.values()), sum(weights.values())
    if any(name not in weights or not weights[name] for name, count in counts.items() if count):
        return 0.0
    value = sum((counts.get(name, 0) - total * weight / whole) ** 2 / (total * weight / whole) for name, weight in weights.items() if weight)
    return chi_squared_tail(value, max(1, sum(1 for weight in weights.values() if weight) - 1))


def chi_squared_tail(value, freedom):
    """P(X > value): the upper regularised incomplete gamma function, by its series or its continued fraction."""
    a, x = freedom / 2, value / 2
    if x <= 0:
        return 1.0
    front = math.exp(-x + a * math.log(x) - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        n = a
        while term > total * 1e-12:
            n += 1
            term *= x / n
            total += term
        return max(0.0, 1 - total * front)
    b, c = x + 1 - a, 1e300
    d = h = 1 / b
    for i in range(1, 1000):
        an = -i * (i - a)
        b += 2
        d = 1 / (an * d + b)
        c = b + an / c
        h *= d * c
        if abs(d * c - 1) < 1e-12:
            break
    return front * h


def _short(value, width=400):
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("unicode_escape").decode() if isinstance(value, str) else text
    return text if len(text) <= width else f"{text[:width]}... ({len(text)} characters)"
