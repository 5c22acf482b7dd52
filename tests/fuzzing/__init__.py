"""Fuzzers of everything that strangers may send; `python -m tests.fuzzing --help` says how to run them at length."""
