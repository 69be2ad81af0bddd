"""Reads the cases: one YAML file each under cases/<area>/. It checks what a case may say, so that a typo is an error, not a pass."""

import fnmatch
import json
import re

import yaml

from . import corpus_config
from .environment import LOADTESTS
from .template import merge

CASES = LOADTESTS / "cases"

# What decides how the proxies and upstreams are started. Cases that agree in all of these share one start.
SETUP = {
    "config", "bootstrap", "listener", "listeners", "listener_filters", "filters", "hcm", "router", "http_filters", "routes",
    "virtual_host", "virtual_hosts", "route_config", "clusters", "upstreams", "log_format", "files", "flags", "ports", "secrets", "needs", "corpus",
}  # fmt: skip
SCRIPT = {"why", "requests", "short", "compare", "stats", "may_differ", "oracle_must", "statistical", "validate", "names", "alone", "extends", "row", "hide"}
COMPARE = {"hosts": {"pattern", "exact", "none"}, "log": {True, False, "sorted"}, "order": {True, False}, "upstream": {True, False}, "resets": {True, False}}


class CaseError(Exception):
    """A case file is not what it must be."""


class Case:
    def __init__(self, path):
        self.path = path
        self.name = str(path.relative_to(CASES).with_suffix(""))
        self.body = _load(path)
        if "corpus" in self.body:
            if corpus_config.path_of(self.body["corpus"]["file"]):
                try:
                    self.body = corpus_config.expand(self.body, _Loader)
                except KeyError as error:
                    raise CaseError(f"{self.name}: corpus: {error}")
            else:
                self.body["needs"] = [*self.body.get("needs", []), "corpus"]
        unknown = set(self.body) - SETUP - SCRIPT
        if unknown:
            raise CaseError(f"{self.name}: unknown keys: {', '.join(sorted(unknown))}")
        if "why" not in self.body:
            raise CaseError(f"{self.name}: says no `why`")
        for key, value in self.body.get("compare", {}).items():
            if key not in COMPARE or value not in COMPARE[key]:
                raise CaseError(f"{self.name}: compare.{key}: {value} is not one of {sorted(map(str, COMPARE.get(key, {})))}")
        for entry in self.body.get("may_differ", []):
            if set(entry) - {"subject"} != {"what", "reason"}:
                raise CaseError(f"{self.name}: an entry of may_differ has `what` and `reason`, and perhaps `subject`")

    @classmethod
    def of(cls, name, body):
        """One that no file holds."""
        made = cls.__new__(cls)
        made.path, made.name, made.body = None, name, body
        return made

    def get(self, key, default=None):
        return self.body.get(key, default)

    @property
    def setup(self):
        return {key: value for key, value in self.body.items() if key in SETUP}

    @property
    def share_key(self):
        if self.get("alone") or self.get("validate"):
            return self.name
        return json.dumps(self.setup, sort_keys=True)


def _load(path):
    try:
        body = yaml.load(path.read_text(), _Loader) or {}
    except yaml.YAMLError as error:
        raise CaseError(f"{path}: {error}")
    if "extends" in body:
        body = merge(_load(path.parent / body["extends"]), body)
    return body


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML without `on`/`off`/`yes`/`no` as booleans, and with dates as text: as Envoy's users mean it."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))


def load_all(pattern=None, short=False):
    """The cases whose name matches `pattern` (a glob, or a part of the name), in order."""
    cases = [Case(path) for path in sorted(CASES.glob("*/*.yaml")) if not path.name.startswith("_")]
    if pattern:
        cases = [case for case in cases if fnmatch.fnmatch(case.name, pattern) or pattern in case.name]
    return [case for case in cases if case.get("short") or not short]


def groups(cases):
    """Cases that can share one start of the proxies, in order."""
    found = {}
    for case in cases:
        found.setdefault(case.share_key, []).append(case)
    return list(found.values())
