"""Train P-EAGLE drafters: `python -m trainer train --config run.yaml`.

Read in this order: `config`, `data/` (documents -> packed rows; `prepare` writes them to disk), `states/` (rows -> what
the target said about them), `new_drafter`, `loop`, `checkpoints`, `evaluate`.
"""
