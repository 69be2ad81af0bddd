"""The harness judges the proxy; this judges the harness: a subject that answers otherwise must be reported, path and all.

Run with `python3 loadtests/tests/test_harness.py`.
"""

import os
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

LOADTESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(LOADTESTS))
from harness import environment  # noqa: E402

environment.enter()

from harness import compare  # noqa: E402


def other_envoy(directory, sed):
    """A subject that is Envoy on a configuration with something changed."""
    script = directory / "subject"
    script.write_text(
        "#!/bin/sh\n[ \"$1\" = --envoy-defaults ] && shift\nfor word; do case $word in *config.json) "
        f"sed '{sed}' $word > $word.changed;; esac; done\n"
        f"exec {environment.oracle()} $(for word; do case $word in *config.json) echo $word.changed;; *) echo $word;; esac; done)\n"
    )
    script.chmod(0o755)
    return script


def differential(*arguments):
    command = [sys.executable, LOADTESTS / "differential.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


class Differential(unittest.TestCase):
    def setUp(self):
        self.directory = environment.CACHE / f"test-{os.getpid()}"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.addCleanup(shutil.rmtree, self.directory)

    def test_the_oracle_equals_itself(self):
        done = differential("--subject", "envoy", "--case", "routes/exact")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("1 equal", done.stdout)

    def test_another_body_is_reported_with_its_path(self):
        done = differential("--subject", other_envoy(self.directory, 's/"inline_string": "exact"/"inline_string": "wrong"/'), "--case", "routes/exact")
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("requests[0].response.body", done.stdout)
        self.assertIn("subject: wrong", done.stdout)

    def test_a_header_that_the_upstream_should_not_see_is_reported(self):
        change = 's/"stat_prefix": "ingress"/"stat_prefix": "ingress", "generate_request_id": false/'
        done = differential("--subject", other_envoy(self.directory, change), "--case", "paths/verbatim")
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("upstream.up[0].headers.x-request-id", done.stdout)

    def test_another_statistic_is_reported(self):
        change = 's/"stat_prefix": "ingress"/"stat_prefix": "other"/'
        done = differential("--subject", other_envoy(self.directory, change), "--case", "routes/exact")
        self.assertIn("stats.http.ingress.downstream_rq_total", done.stdout)

    def test_a_subject_that_does_not_start_is_different(self):
        done = differential("--subject", "/bin/false", "--case", "routes/exact")
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("did not run", done.stdout)


class ChiSquared(unittest.TestCase):
    def test_the_tail_is_the_textbook_one(self):
        self.assertAlmostEqual(compare.chi_squared_tail(3.841, 1), 0.05, 3)
        self.assertAlmostEqual(compare.chi_squared_tail(13.816, 2), 0.001, 5)
        self.assertAlmostEqual(compare.chi_squared_tail(18.307, 10), 0.05, 3)

    def test_equal_and_unequal_samples(self):
        self.assertGreater(compare.chi_squared_two({"a": 300, "b": 100}, {"a": 291, "b": 109}), 0.1)
        self.assertLess(compare.chi_squared_two({"a": 300, "b": 100}, {"a": 200, "b": 200}), 0.001)
        self.assertLess(compare.chi_squared_weights({"a": 200, "b": 200}, {"a": 3, "b": 1}), 0.001)
        self.assertEqual(compare.chi_squared_weights({"a": 399, "c": 1}, {"a": 1, "c": 0}), 0.0)


if __name__ == "__main__":
    unittest.main()
