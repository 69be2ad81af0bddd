"""The parts of the bench: peers, load generators, cases, report. `bench.py` beside this folder puts them together."""
