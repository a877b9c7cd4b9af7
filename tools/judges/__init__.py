"""Other implementations that check ours, each in an environment of its own: `vllm` and `speculators`.

What runs in those environments lies in `workers`.
"""
