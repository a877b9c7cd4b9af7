"""Save a run and continue it bit for bit: `checkpoints` is the way in, `contract` says what may not change between."""
