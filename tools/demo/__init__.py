"""The demo: a small target and its P-EAGLE head, made on the spot and served (`python -m tools.demo`)."""
