"""The harness judges the proxy; this judges the harness: a subject that answers otherwise must be reported, path and all.

Run with `python3 loadtests/tests/test_harness.py`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import types
import unittest
from pathlib import Path

LOADTESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(LOADTESTS))
from harness import environment  # noqa: E402

environment.enter()

import rotation  # noqa: E402
from harness import accepted, case as cases, compare, corpus_config, corpus_tls, known, upstream_xds  # noqa: E402
from harness.tls_load import Handshake  # noqa: E402


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


    @unittest.skipUnless(environment.shared(), "the corpus is not here")
    def test_another_name_asked_of_an_upstream_is_reported(self):
        change = 's/"sni": "zipkin-custom-sni"/"sni": "other"/'
        done = differential("--subject", other_envoy(self.directory, change), "--case", "corpus/istio_tracing_sni")
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("upstream.zipkin[0].connection.sni", done.stdout)

    @unittest.skipUnless(environment.shared(), "the corpus is not here")
    def test_a_corpus_file_whose_tls_is_another_is_reported(self):
        subject = other_envoy(self.directory, "s/zipkin-custom-sni/other/")
        command = [sys.executable, LOADTESTS / "corpus.py", "--subject", subject, "--file", "tracing_tls_custom_sni"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r'DIFFERENT \S*tracing_tls_custom_sni_golden.json upstream TLS\n.*zipkin-custom-sni.*\n.*"sni": "other"')

    def test_a_listed_case_may_differ_and_an_equal_one_must_leave_the_list(self):
        known = self.directory / "known.txt"
        known.write_text("routes/exact: the harness's own test\n")
        done = differential("--known", known, "--subject", "/bin/false", "--case", "routes/exact")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("1 known to differ", done.stdout)
        done = differential("--known", known, "--subject", other_envoy(self.directory, ""), "--case", "routes/exact")
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("routes/exact is equal now", done.stdout)

    def test_a_listed_name_without_a_case_is_a_mistake(self):
        known = self.directory / "known.txt"
        known.write_text("routes/no_such_case: why\n")
        done = differential("--known", known, "--subject", "/bin/false", "--case", "routes/exact")
        self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
        self.assertIn("names no case: routes/no_such_case", done.stderr)


class Lists(unittest.TestCase):
    def test_every_line_of_the_known_differences_has_a_name_and_a_reason(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "known.txt"
            for wrong in ("a/b", "a/b:", "ab: why", "a/c: why\na/b: why", "a/b: why\na/b: why"):
                path.write_text(wrong)
                self.assertRaises(known.ListError, known.read, path)
            path.write_text("# what it is\n\na/b: why\na/c: also: this\n")
            self.assertEqual(known.read(path), {"a/b": "why", "a/c": "also: this"})

    def test_the_known_differences_name_cases(self):
        self.assertEqual(known.without_case(known.read(), [case.name for case in cases.load_all()]), [])

    def test_the_page_of_accepted_differences_is_fresh(self):
        command = "python3 loadtests/differential.py --differences > loadtests/DIFFERENCES.md"
        self.assertEqual(accepted.PAGE.read_text(), accepted.page(cases.load_all()), f"run: {command}")

    def test_the_short_run_has_a_case_of_each_area(self):
        areas = {case.name.split("/")[0] for case in cases.load_all()}
        self.assertEqual(areas - {case.name.split("/")[0] for case in cases.load_all(short=True)}, set())


class Corpus(unittest.TestCase):
    def test_both_spellings_of_a_field_are_one_and_a_users_words_stay(self):
        written = {"portValue": 1, "http2ProtocolOptions": {}, "acceptHttp10": True, "filterMetadata": {"envoy.lb": {"someKey": 1}}}
        read = {"port_value": 1, "http2_protocol_options": {}, "accept_http_10": True, "filter_metadata": {"envoy.lb": {"someKey": 1}}}
        self.assertEqual(corpus_config.snake(written), read)

    def test_what_an_endpoint_is_matched_to_decides_how_its_server_speaks(self):
        context = {"@type": "x.UpstreamTlsContext", "sni": "a.test", "common_tls_context": {"validation_context": {
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": "spiffe://t/x"}}, {"san_type": "DNS", "matcher": {"prefix": "b"}}]}}}
        cluster = {"transport_socket_matches": [{"match": {"name": "one"}, "transport_socket": {"typed_config": context}}]}
        matched = {"endpoint": {}, "metadata": {"filter_metadata": {"envoy.transport_socket_match": {"name": "one"}}}}
        shown = {"sans": "DNS:host.test,URI:spiffe://t/x,DNS:a.test", "alpn": ["h2"]}
        self.assertEqual(corpus_tls.server(cluster, matched, ["host.test"], True), (shown, False))
        self.assertEqual(corpus_tls.server(cluster, {"endpoint": {}}, ["host.test"], True), (None, False))

    def test_what_xds_comes_from_is_a_control_plane(self):
        services = {"grpc_services": [{"envoy_grpc": {"cluster_name": "sds"}}]}
        self.assertEqual(corpus_tls.control_planes([{"sds_config": {"api_config_source": services}}, {"access_log": services}]), {"sds"})

    def test_messages_come_apart_as_they_were_put_together(self):
        long = "x" * 300
        self.assertEqual(list(upstream_xds.fields(b"\x08\x96\x01" + upstream_xds.field(19, long))), [(19, long.encode())])


class Rotation(unittest.TestCase):
    """What rotation.py says of six changes, one a second, the fifth of them junk."""

    def broken(self, presented=(), failures=(), refused=1, said=1, told=None, on_new=1000):
        run = rotation.Run(6)
        run.put_at = {number: float(number) for number in range(1, 7)}
        good = {number: number - (number == 5) for number in range(1, 7)}
        shown = dict([*((number + 0.5, of) for number, of in good.items()), *presented])
        handshakes = [Handshake(at, at + 0.1, ["example.com", f"r{of}.test"]) for at, of in shown.items()]
        run.load = types.SimpleNamespace(handshakes=handshakes, failures=list(failures), on_kept=1000, on_new=on_new)
        run.counted, run.said = {"sds.rotating.update_rejected": refused, "sds.rotating.update_success": 6}, ["rejected"] * said
        run.told = {number: {str(one)} for number, one in good.items()} | (told or {})
        return " ".join(run.broken())

    def test_all_holds(self):
        self.assertEqual(self.broken(), "")

    def test_each_thing_that_does_not_hold_is_told(self):
        self.assertIn("failed: x", self.broken(failures=["x"]))
        self.assertIn("certificate 2 was presented after inf s", self.broken(presented=[(2.5, 1)]))
        self.assertIn("certificate 2 was presented after 1.05 s", self.broken(presented=[(2.5, 1), (2.95, 2)]))
        self.assertIn("certificate 5 was presented when 4 was due", self.broken(presented=[(5.5, 5)]))
        self.assertIn("certificate 1 was presented when 3 was due", self.broken(presented=[(4.9, 1)]))
        self.assertIn("counted were 0", self.broken(refused=0))
        self.assertIn("the log tells of 0", self.broken(said=0))
        self.assertIn("/certs told of ['5']", self.broken(told={5: {"5"}}))
        self.assertIn("on new connections", self.broken(on_new=10))


class TimeLeft(unittest.TestCase):
    def test_a_later_try_has_less_time_left(self):
        first = compare.Left.of("14900", 100)
        self.assertTrue(first.agrees(compare.Left.of("14920", 0)))
        self.assertTrue(first.agrees(compare.Left.of("14300", 690)))
        self.assertFalse(first.agrees(compare.Left.of("14300", 100)))
        self.assertFalse(first.agrees(compare.Left.of("15400", 700)))

    def test_only_time_is_tried_again(self):
        late = compare.Difference("requests[0].response.end", "complete", "timeout: no whole answer")
        slow = compare.Difference("requests[0].seconds", "0.10 s", "0.90 s")
        other = compare.Difference("requests[0].response.status", 200, 503)
        self.assertTrue(compare.of_time([late, slow]))
        self.assertFalse(compare.of_time([late, other]))
        self.assertFalse(compare.of_time([]))


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
