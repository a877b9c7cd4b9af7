"""Train P-EAGLE drafters: `python -m trainer train --config run.yaml`.

Read in this order:

1. `config/`: what a run is told;
2. `data/`: documents -> packed rows (`prepare/` writes them to disk, `regenerate/` replaces their answers);
3. `hidden_states/`: a packed row -> what the target says about it;
4. `new_drafter`: a drafter as its target has it, before the first step;
5. `train/`: `assemble` puts 1 to 4 together, `loop` takes the steps, `run` is the verb;
6. `checkpoint/`, `evaluate`, `export/`: what is left of a run, and what it is worth.

`target/` loads the target, `sizing/` chooses how a step runs, `parallel/` knows of several processes, `storage/` keeps
directories on disk whole.
"""

import warnings

# torch's remark on fp32 norm weights under bf16 autocast, which are meant to be fp32
warnings.filterwarnings("ignore", "Mismatch dtype between input and weight", UserWarning)
