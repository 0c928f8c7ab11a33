"""Benchmarks: the README's figures, measured beside the peers in one run. `python -m bench --help`."""
