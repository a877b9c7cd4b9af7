"""The paper's ablations and some of our own on the demo's target (`python -m tools.ablations`)."""
