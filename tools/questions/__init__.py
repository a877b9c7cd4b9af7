"""Questions to ask a target, whose answers (`python -m trainer regenerate`) a drafter then learns from.

`gsm8k` reads a file of word problems, `docstrings` makes code questions of the standard library's functions, `sampled`
lets the target itself ask. Each yields plain strings; `__main__` writes them as chats.
"""
