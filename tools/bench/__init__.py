"""Benchmarks. `python -m tools.bench --help` lists them; docs/benchmarks.md says what was measured and how."""
