"""Load the target: `load` whole or its two ends, `sharded` over several processes; `mask_token` finds an unused id."""
