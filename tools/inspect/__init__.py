"""Say what a P-EAGLE head is, how it is served, and everything wrong with it: `python -m tools.inspect HEAD`."""
