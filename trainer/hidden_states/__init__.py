"""Give training the target's hidden states: from transformers, from a SGLang server, or from a directory of them.

`base` is the interface; `from_transformers`, `from_sglang` and `cached` (a `store` of `shards`) implement it; `choose`
takes the one that the configuration names, `extract` fills a store.
"""
