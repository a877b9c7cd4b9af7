"""Correct what SGLang 0.5.23 gets wrong under PEAGLE, and let PEAGLE in where SGLang lists its algorithms by name.

A file here can go when SGLang no longer needs it, with its rows in `hooks.py`. Two are called from elsewhere, too:
`penalties.start` by the drafter's pass, `lora.check` by `server_args`.
"""
