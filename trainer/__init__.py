"""Train P-EAGLE drafters: `python -m trainer train --config run.yaml`.

Read in this order: `config`, `data/` (documents -> packed rows; `prepare` writes them to disk), `states/` (rows -> what
the target said about them), `new_drafter`, `loop`, `checkpoints`, `evaluate`.
"""

import warnings

# torch's remark on fp32 norm weights under bf16 autocast, which are meant to be fp32
warnings.filterwarnings("ignore", "Mismatch dtype between input and weight", UserWarning)
