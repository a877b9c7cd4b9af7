"""Turn files into packed rows.

`sources` reads records; `chat` finds what the target said in them, `documents` makes token ids of them, `packing` fills
rows. What `prepare` wrote beforehand is read by `prepared`, from `shards`; `vocabulary` counts tokens for the drafter.
"""
