"""Measure the packages: `python -m tools.bench --help` lists the benchmarks.

docs/benchmarks.md says what was measured and how.
"""
