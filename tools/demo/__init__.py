"""The demo: a small target, a P-EAGLE and an EAGLE-3 head, made on the spot and served (`python -m tools.demo`)."""
