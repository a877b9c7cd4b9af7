"""Where hidden states come from.

`base` is the interface, `in_process` a transformers target beside the drafter, `engine` a SGLang server, `cached` a
directory of states (`store`, of `shards`); `sources` chooses.
"""
