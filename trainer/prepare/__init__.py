"""Prepare data once for many runs: `prepare` is the command, `workers` make shards, `summary` tells what is in them."""
