"""The mathematics of P-EAGLE (arXiv 2602.01469): no serving engine, no trainer, only tensors.

Read in this order, beside docs/elements.md:

    config, elements, cod, mask     what a drafter is; which rows a training step has, and which sees which
    attention/, drafter, loss       the network and what it is charged
    training/loss_and_backward      one training step, in three ways that agree
    generate, verify                the drafter loop of serving, in plain torch: the reference for engines
    checkpoint                      files

Beside them: config_formats, drafter_shape, draft_vocabulary, tensors (what files say), metrics, partition, target,
kernels/ (Triton), paper/ (the comparison with the paper), serve_command, atomic and errors.
"""

__version__ = "0.1.0"  # of the whole project: pyproject.toml reads it here
