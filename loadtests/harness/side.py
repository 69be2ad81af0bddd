"""One side of a comparison: starts a proxy on a group's configuration, runs each case's script, and brings back what was seen."""

import asyncio
import json

from . import certificates
from .observe import Observer
from .process import Proxy, StartFailed, behaviour_flags
from .script import Script, write_file
from .template import bootstrap, substitute

WITH_STATS = True  # `differential.py --without stats` compares all but the counters


async def run_group(cases, binary, upstreams, ports, directory):
    """Observations of the cases, in order; all share one start."""
    ports = {**places(ports, directory), **upstreams.ports}
    prepare(cases[0], ports, directory)
    upstreams.forget()
    try:
        async with Proxy(binary, directory / "config.json", ports["admin"], directory, cases[0].get("flags", ()), listen=ports["listen"]) as proxy:
            return [await _run_case(case, proxy, upstreams, ports, directory) for case in cases]
    except StartFailed as error:
        return [{"started": False, "said": str(error)} for _ in cases]


def places(ports, directory):
    """What stands for the `@names@` of a case, beside its upstreams."""
    return {**ports, "dir": str(directory), "log": str(directory / "access.log"), "certs": str(certificates.standing())}


def prepare(case, ports, directory):
    """Writes the configuration and the files it names; a log of an earlier side is taken away."""
    (directory / "access.log").unlink(missing_ok=True)
    for name, content in case.get("files", {}).items():
        write_file(directory, name, substitute(content, ports))
    (directory / "config.json").write_text(json.dumps(bootstrap(case.body, ports), indent=1))


async def _run_case(case, proxy, upstreams, ports, directory):
    upstreams.reset()
    log = directory / "access.log"
    skip = len(_lines(log))
    try:
        before = await proxy.stats() if WITH_STATS else {}
        seen = await Script(proxy, upstreams, ports, directory).run(case.get("requests", []))
        lines = await _settled(log, skip)
        after = await proxy.stats() if WITH_STATS else {}
    except (OSError, TimeoutError) as error:
        return {"started": True, "ran": False, "said": f"{type(error).__name__}: {error}; {proxy.tail()}"}
    observer = Observer(case, ports, upstreams)
    return {
        "started": True,
        "requests": observer.steps(seen),
        "log": observer.log(lines),
        "stats": observer.stats(before, after),
    }


async def _settled(log, skip):
    """The lines since `skip`, once no more come."""
    count, quiet = -1, 0
    for _ in range(40):
        await asyncio.sleep(0.04)
        lines = _lines(log)
        quiet = quiet + 1 if len(lines) == count else 0
        count = len(lines)
        if quiet >= (2 if count > skip else 4):
            break
    return lines[skip:]


def _lines(log):
    return log.read_text(errors="replace").splitlines() if log.exists() else []


async def validate(case, binary, ports, directory):
    """Accepted or not by `--mode validate`; of the wording only whether it names one of `names`, in any spelling."""
    ports = places(ports, directory)
    prepare(case, ports, directory)
    command = [str(binary), *behaviour_flags(binary), "--mode", "validate", "-c", str(directory / "config.json")]
    command += ["--service-node", "node", "--service-cluster", "cluster", *case.get("flags", ())]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 20)
    except TimeoutError:
        process.kill()
        return {"accepted": "no answer in 20 s"}
    text = said.decode(errors="replace")
    plain = text.lower().replace("_", "")
    observed = {"accepted": process.returncode == 0, "said": text[-600:]}
    if process.returncode:
        observed["names"] = any(name.lower().replace("_", "") in plain for name in case.get("names", [""]))
    return observed
