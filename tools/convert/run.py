"""Run one conversion from its arguments to a directory, saying what it does."""

from __future__ import annotations

import argparse
import sys

import torch

from peagle_core.errors import InputError
from tools.convert.check import compare_heads
from tools.convert.correction_cost import correction_cost
from tools.convert.plan import Plan, make_plan
from tools.convert.vllm_check import check_in_vllm, require_vllm
from tools.convert.write import destination_directory, write_head
from tools.heads.head import Head, in_bytes, open_head
from tools.heads.target import Target, open_target


def run(options: argparse.Namespace) -> None:
    """Convert a head. Raises InputError; then nothing is left behind."""
    if options.check == "vllm":
        require_vllm(options.target)
    source = open_head(options.source)
    target = open_target(options.target) if options.target else None
    dtype = getattr(torch, options.dtype) if options.dtype else None
    plan = make_plan(source, options.to, target, options.aux_ids == "output")
    print(
        f"{options.source}: {source.files.format}, {len(source.tensors)} tensors in {len(source.files.weights)} files"
    )
    with destination_directory(options.destination, source, dtype) as partial:
        write_head(source, plan, partial, target, dtype)
        _report(plan)
        if target and source.config.correction_rank and not plan.config.correction_rank:
            print(f"  {correction_cost(source, target)}")
        if options.check:
            _check(source, open_head(partial), target, dtype)
        if options.check == "vllm" and target:
            print(f"check: {check_in_vllm(partial, target)}")
        size = sum(file.stat().st_size for file in partial.iterdir())
    print(f"{options.destination}: {options.to}, {in_bytes(size)}")


def _report(plan: Plan) -> None:
    for change in plan.changes:
        print(f"  {change}")
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _check(source: Head, result: Head, target: Target | None, dtype: torch.dtype | None) -> None:
    difference = compare_heads(source, result, target)
    if difference.largest > 0 and dtype is None:
        raise InputError(f"the result computes other logits than {source.directory}, by up to {difference.largest:.3g}")
    print(
        f"check: largest difference of logits {difference.largest:.3g} (largest logit {difference.scale:.3g}), "
        f"{100 * difference.same_drafts:.0f}% of drafts equal"
    )
