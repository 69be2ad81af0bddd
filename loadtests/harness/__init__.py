"""The parts of the differential harness: one idea a file. The commands beside this folder put them together."""
