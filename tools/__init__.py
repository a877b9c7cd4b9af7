"""Commands over the packages, one per module: `python -m tools.<name>`."""
