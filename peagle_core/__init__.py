"""The mathematics of P-EAGLE (arXiv 2602.01469): no serving engine, no trainer, only tensors.

Read in this order: `config`, `elements`, `cod`, `mask`, `attention/`, `drafter`, `loss`, `training`
for training; `rows`, `generate`, `verify` for serving; `checkpoint` for files.
"""
