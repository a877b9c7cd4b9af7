"""Train a drafter: `assemble` makes everything that a run consists of, `loop` trains it; `run` holds the verbs."""
