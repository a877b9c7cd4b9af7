"""Hand a trained drafter on: `export` makes the directory, model_card.md is the template of its README."""
