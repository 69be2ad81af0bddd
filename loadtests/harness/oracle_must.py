"""Proves that a case tests what it says: invariants of the oracle's own answers.

Nothing here is compared with the subject; a case whose invariant fails is a mistake in the case, and is reported as such.
"""


from . import side, template


def broken(case, observed):
    """Lines that say which `must` of a step, or `oracle_must` of the case, the oracle did not keep."""
    found = []
    for index, step in enumerate(case.get("requests", [])):
        must = step.get("must")
        if "await" in step and "end" in observed["requests"][index]["response"]:
            found.append(f"requests[{index}]: {step['await']} did not become what was awaited")
        if must:
            found += [f"requests[{index}]: {line}" for line in _step(must, observed["requests"][index])]
    whole = case.get("oracle_must", {})
    for wanted in whole.get("log", []) if template.WITH_LOGS else []:
        if not any(wanted in line for line in observed.get("log", [])):
            found.append(f"no log line holds {wanted!r}: {observed.get('log')}")
    for name, value in whole.get("stats", {}).items() if side.WITH_STATS else []:
        if observed.get("stats", {}).get(name, 0) != value:
            found.append(f"stats.{name} is {observed.get('stats', {}).get(name, 0)}, not {value}")
    for key in ("accepted", "started"):
        if key in whole and observed.get(key) != whole[key]:
            found.append(f"{key} is {observed.get(key)}: {observed.get('said')}")
    return found


def _step(must, seen):
    """`status, body, body_contains, end, closed, headers, absent, trailers, counts`; `upstream`: how many, or what the first saw."""
    response = seen["response"]
    for key, wanted in must.items():
        if key == "body_contains":
            if wanted not in response.get("body", ""):
                yield f"body {response.get('body')!r} does not hold {wanted!r}"
        elif key in ("headers", "trailers"):
            for name, value in wanted.items():
                if response.get(key, {}).get(name) != value:
                    yield f"{key} {name}: {response.get(key, {}).get(name)!r}, not {value!r}"
        elif key == "absent":
            for name in wanted:
                if name in response.get("headers", {}):
                    yield f"header {name} is there: {response['headers'][name]!r}"
        elif key == "statuses":
            answers = response.get("parallel") or response.get("pipeline") or response.get("answers") or []
            if [answer.get("status") for answer in answers] != wanted:
                yield f"statuses {[answer.get('status', answer.get('end')) for answer in answers]}, not {wanted}"
        elif key == "upstream":
            yield from _upstream(wanted, [record for records in seen.get("upstream", {}).values() for record in records])
        elif response.get(key) != wanted:
            yield f"{key} {response.get(key)!r}, not {wanted!r}"


def _upstream(wanted, records):
    if isinstance(wanted, int):
        if len(records) != wanted:
            yield f"{len(records)} requests upstream, not {wanted}"
        return
    if not records:
        yield "no request upstream"
        return
    for key, value in wanted.items():
        if key == "headers":
            for name, one in value.items():
                if records[0]["headers"].get(name) != one:
                    yield f"upstream header {name}: {records[0]['headers'].get(name)!r}, not {one!r}"
        elif key == "absent":
            for name in value:
                if name in records[0]["headers"]:
                    yield f"upstream header {name} is there"
        elif records[0].get(key) != value:
            yield f"upstream {key}: {records[0].get(key)!r}, not {value!r}"
