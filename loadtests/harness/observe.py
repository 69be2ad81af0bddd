"""Makes two runs comparable: takes away what may differ by nature (dates, ids, durations, ports), names hosts by their role.

The result is plain data (mappings, lists, strings, numbers); what may differ in one case only is that case's `may_differ`.
"""

import re

from .compare import Left

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
VALUES = {  # header -> what stands for its value
    "date": (re.compile(r".+"), "DATE"),
    "x-envoy-upstream-service-time": (re.compile(r"\d+"), "MS"),
    "set-cookie": (re.compile(r'(?<=")[0-9a-f]{16}(?=")'), "HASH"),
}

TIME_LEFT = "x-envoy-expected-rq-timeout-ms"

# Names whose value depends on time, memory, connection reuse or the number of reads, not on the requests.
VOLATILE = re.compile(
    r"^(server|filesystem|runtime|main_thread|workers|dns|access_logs|listener_manager|cluster_manager|http1|http2|overload|thread_local|tls_inspector)\."
    r"|\.(cx_|upstream_cx_|downstream_cx_|lb_|membership_|update_|version|warming_state|assignment_|bind_errors|default\.|max_host_weight|circuit_breakers\.)"
    r"|(upstream_rq_pending_total|_active|_bytes\w*|_buffered|_delta|_time|_ms|_timer)$|^http\.admin\.|^listener\.admin\.|^cluster\.\w+\.(external|internal|http[123])\.|\.worker_\d+\.|^listener\."
)
ADMIN = re.compile(r"^(http|listener)\.admin\.")  # the harness's own questions
DEFAULT_STATS = r"^http\.ingress\.|^cluster\.|^vhost\.|^tcp\.|\.rbac\.|\.ratelimit\.|local_rate"


class Observer:
    """Turns one side's raw run into plain, normalised data."""

    def __init__(self, case, ports, upstreams):
        self.case, self.ports = case, ports
        self.sent = str(case.get("requests"))
        self.hosts = case.get("compare", {}).get("hosts", "pattern")
        self.names = self._name_hosts(upstreams)
        self.hide = [re.compile(pattern) for pattern in case.get("hide", [])]

    def _name_hosts(self, upstreams):
        """{"127.0.0.1:port": logical name}. "pattern": numbered in the order in which they were used; "none": one name for all."""
        names, used = {}, {}
        for record in upstreams.records:
            hosts = used.setdefault(record.cluster, [])
            if record.host not in hosts:
                hosts.append(record.host)
        for cluster, ports in upstreams.ports.items():
            order = used.get(cluster, [])
            for index, port in enumerate(ports):
                if len(ports) == 1:
                    label = cluster
                elif self.hosts == "none":
                    label = f"{cluster}.any"
                elif self.hosts == "exact":
                    label = f"{cluster}.{index}"
                else:
                    label = f"{cluster}#{order.index(index) + 1}" if index in order else f"{cluster}.unused"
                names[f"127.0.0.1:{port}"] = label
        for role, port in self.ports.items():
            if isinstance(port, int):
                names[f"127.0.0.1:{port}"] = f"@{role}@"
        return names

    def text(self, value):
        """What the case hides is out, known addresses by name, other loopback ports as PORT, ids that the client did not send as UUID."""
        value = re.sub(r"127\.0\.0\.\d+:\d+", lambda found: self.names.get(found[0], found[0].split(":")[0] + ":PORT"), value)
        for pattern in self.hide:  # each group, or the whole match, is replaced
            value = pattern.sub(lambda found: found[0].replace(found[1], "_") if found.groups() else "_", value)
        return UUID.sub(lambda found: found[0] if found[0] in self.sent else "UUID", value)

    def headers(self, pairs):
        """Set of names, each with its values in order."""
        found = {}
        for name, value in pairs:
            pattern, stands = VALUES.get(name.lower(), (None, None))
            value = self.text(pattern.sub(stands, value) if pattern else value)
            found.setdefault(name, []).append(value)
        return {name: values[0] if len(values) == 1 else values for name, values in sorted(found.items())}

    def response(self, outcome):
        if isinstance(outcome, list):
            return [self.response(one) for one in outcome]
        if not isinstance(outcome, dict):
            return self.text(outcome) if isinstance(outcome, str) else outcome
        made = {}
        for key, value in outcome.items():
            if key in ("headers", "trailers"):
                made[key] = self.headers(value)
                if key == "headers" and self.case.get("compare", {}).get("order"):
                    made["header order"] = [name for name, _ in value]
            elif key == "informational" and not value:
                continue
            elif key in ("counts",):
                made[key] = value
            else:
                made[key] = self.response(value)
        return made

    def upstream(self, records):
        """By cluster, in order of arrival; several at once have no order, so they are sorted."""
        by_cluster = {}
        for record in records:
            seen = {"line": self.text(record.line), "headers": self.headers(record.headers), "protocol": record.protocol}
            left = seen["headers"].get(TIME_LEFT, "")
            if isinstance(left, str) and left.isdigit():
                seen["headers"][TIME_LEFT] = Left.of(left, (record.at - records[0].at) * 1000)
            port = next(address for address, port in self._addresses(record.cluster) if port == record.host)
            if self.names[port] != record.cluster:
                seen["host"] = self.names[port]
            if record.connection:
                seen["connection"] = record.connection
            if record.body:
                seen["body"] = record.body.decode("latin-1")
            if record.trailers:
                seen["trailers"] = self.headers(record.trailers)
            if self.case.get("compare", {}).get("resets"):
                seen["reset"] = record.reset
            by_cluster.setdefault(record.cluster, []).append(seen)
        return by_cluster

    def _addresses(self, cluster):
        return [(f"127.0.0.1:{port}", index) for index, port in enumerate(self.ports[cluster])]

    def steps(self, seen):
        made = []
        for step, one in zip(self.case.get("requests", []), seen):
            result = {"response": self.response(one["response"])}
            if self.case.get("compare", {}).get("upstream", True):
                result["upstream"] = self.upstream(one.get("upstream", []))
                if "parallel" in step:
                    for records in result["upstream"].values():
                        records.sort(key=str)
            if step.get("timing"):
                result["seconds"] = one["seconds"]
            made.append(result)
        return made

    def log(self, lines):
        compare = self.case.get("compare", {}).get("log", True)
        if compare is False:
            return []
        lines = [self.text(line) for line in lines]
        concurrent = any({"parallel", "repeat"} & set(step) for step in self.case.get("requests", []))
        return sorted(lines) if compare == "sorted" or concurrent else lines

    def stats(self, before, after):
        """What the script added, for the names that the case asks for; zeros are left out unless they are named."""
        wanted = self.case.get("stats", True)
        if wanted is False:
            return {}
        chosen = re.compile(DEFAULT_STATS if wanted is True else "|".join(wanted))
        found = {}
        for name, value in after.items():
            change = value - before.get(name, 0)
            name = self.text(re.sub(r"(?<=127\.0\.0\.1)_(?=\d+)", ":", name))
            if ADMIN.search(name) or not chosen.search(name) or (wanted is True and VOLATILE.search(name)):
                continue
            if change or wanted is not True:
                found[name] = change
        return dict(sorted(found.items()))
