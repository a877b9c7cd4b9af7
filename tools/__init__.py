"""Hold the commands over the packages, one per room: `python -m tools.{convert,inspect,demo,bench,ablations}`."""
