"""Times without weights: models of published sizes, prescribed acceptance, drafter passes beside their floor."""
