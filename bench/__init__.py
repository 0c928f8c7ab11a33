"""Benchmarks: what the README claims, measured beside the peers in one run. `python -m bench --help`."""
