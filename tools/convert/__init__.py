"""Convert P-EAGLE heads from one checkpoint format to another: `python -m tools.convert SRC DST --to vllm`.

Read in this order: `tools.heads` (a head and a target on disk), `plan` (what will change), `write` (tensor by tensor,
complete or absent), `check` (source and result compute the same).
"""
