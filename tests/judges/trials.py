"""What vLLM is asked to serve: heads that know texts by heart, and the tiny target's, in both formats, K by K."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from byte_models import drafter_config, fresh_drafter, greedy_batch, overfit_head, save_target
from eagle3 import overfit_eagle3
from transformers import LlamaForCausalLM

from peagle_core.checkpoint import load_drafter, save_drafter
from peagle_core.config import PEagleConfig
from peagle_core.generate import Speculation, speculate
from peagle_core.target import target_head
from tools.convert.__main__ import main as convert_command
from tools.judges.vllm import Case, Served
from tools.tiny_target.corpus import heldout_prompts

NUM_DRAFTS = (1, 3, 5, 8)
FORMATS = ("flat", "speculators")
TRAINED = [[i * 7 % 250 + j for j in range(3 + i)] for i in range(4)]
UNSEEN = [[5], [(3 * i) % 240 for i in range(50)]]  # one token; a prompt whose text no head knows
NEW_TOKENS = 61
TINY = Path("build/tiny-target")
TINY_REQUESTS, TINY_NEW_TOKENS = 12, 96
HEAD_DIM = 32  # the smallest that vLLM's CPU attention takes

# Name -> its config. The aux ids (1, 3, 6), not vLLM's default, are `drafter_config`'s own.
HEADS = {
    "draft vocabulary": {"num_hidden_layers": 1, "draft_vocab_size": 128, "aux_layer_ids": (2, 4, 5)},
    "norm_before_residual": {"num_hidden_layers": 2, "norm_before_residual": True, "aux_layer_ids": (2, 4, 5)},
    "four layers": {"num_hidden_layers": 4, "aux_layer_ids": (1, 3, 6)},
}
# Served with K=5 only.
MORE_HEADS = {
    "norm_before_fc": {"num_hidden_layers": 1, "norm_before_fc": True},
    "fc_norm": {"num_hidden_layers": 1, "fc_norm": True},
    "qk_norm": {"num_hidden_layers": 2, "qk_norm": True},
}
NOT_IN_SPECULATORS = ("fc_norm",)  # vLLM 0.32 does not read it from that format
EAGLE3 = "EAGLE-3"


@dataclass(frozen=True)
class Trial:
    """One engine. head: a name above, EAGLE3 or "tiny target"; form: of its directory."""

    head: str
    form: str
    k: int

    @property
    def autoregressive(self) -> bool:
        return self.head == EAGLE3

    def __str__(self) -> str:
        return f"{self.head}, {self.form}, K={self.k}"


def has_tiny() -> bool:
    return (TINY / "head" / "config.json").is_file()


def all_trials() -> list[Trial]:
    trials = [Trial(head, form, k) for head in HEADS for form in FORMATS for k in NUM_DRAFTS]
    trials += [Trial(head, form, 5) for head in MORE_HEADS for form in FORMATS]
    trials = [trial for trial in trials if trial.form == "flat" or trial.head not in NOT_IN_SPECULATORS]
    trials += [Trial(EAGLE3, "flat", k) for k in NUM_DRAFTS[1:]]
    if has_tiny():
        trials += [Trial("tiny target", "flat", k) for k in NUM_DRAFTS] + [Trial("tiny target", "speculators", 5)]
    return trials


class Models:
    """Directories of the targets and heads; made on the spot, but for the tiny target's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        save_target(root / "target", head_dim=HEAD_DIM)
        length = NEW_TOKENS + 2 * max(NUM_DRAFTS)  # the last step drafts past the end
        for name, changes in (HEADS | MORE_HEADS).items():
            shape = {"head_dim": HEAD_DIM, "num_depths": max(NUM_DRAFTS), **changes}
            overfit_head(root / "flat" / name, root / "target", TRAINED, length, **shape)
        self._make_eagle3_head(length)
        for name in sorted({trial.head for trial in all_trials() if trial.form == "speculators"}):
            convert(self.head(Trial(name, "flat", 5)), root / "speculators" / name)

    def _make_eagle3_head(self, length: int) -> None:
        target = LlamaForCausalLM.from_pretrained(self.root / "target")
        config = drafter_config(num_hidden_layers=1, head_dim=HEAD_DIM, mask_token_id=None)
        batches = [greedy_batch(target, prompt, length, config.aux_layer_ids) for prompt in TRAINED]
        drafter = fresh_drafter(config, target, batches)
        overfit_eagle3(drafter, batches, target_head(target), max(NUM_DRAFTS), steps=150, lr=2e-3)
        save_drafter(drafter, self.root / "flat" / EAGLE3, torch.float32)

    def target(self, trial: Trial) -> Path:
        return TINY / "target" if trial.head == "tiny target" else self.root / "target"

    def head(self, trial: Trial) -> Path:
        return (
            TINY / "head"
            if (trial.head, trial.form) == ("tiny target", "flat")
            else self.root / trial.form / trial.head
        )

    def layers(self, trial: Trial) -> int:
        return PEagleConfig.from_pretrained(self.head(trial)).num_hidden_layers

    def case(self, trial: Trial, speculative: bool = True) -> Case:
        tiny = trial.head == "tiny target"
        return Case(
            target=str(self.target(trial)),
            prompts=heldout_prompts(TINY, TINY_REQUESTS) if tiny else TRAINED + UNSEEN,
            max_new_tokens=TINY_NEW_TOKENS if tiny else NEW_TOKENS,
            head=str(self.head(trial)) if speculative else None,
            num_draft_tokens=trial.k,
            parallel=not trial.autoregressive,
        )

    def known(self, trial: Trial) -> int:
        """How many of the case's prompts, from the first on, the head has seen with their continuation."""
        return 0 if trial.head == "tiny target" else len(TRAINED)

    def reference(self, trial: Trial) -> list[Speculation]:
        """Our own loop over transformers, prompt by prompt."""
        case = self.case(trial)
        target = LlamaForCausalLM.from_pretrained(self.target(trial)).eval()
        drafter = load_drafter(self.head(trial), torch.float32)
        return [speculate(target, drafter, torch.tensor(p), trial.k, case.max_new_tokens) for p in case.prompts]


def convert(source: Path, directory: Path, *more: str) -> None:
    """What a user does to get speculators' format."""
    directory.parent.mkdir(exist_ok=True)
    assert convert_command([str(source), str(directory), "--to", "speculators", *more]) == 0


@dataclass(frozen=True)
class Outcome:
    """One line of the table. plain: vLLM's outputs without speculation; known: as `Models.known`."""

    trial: Trial
    layers: int
    served: Served
    reference: list[Speculation]
    plain: list[list[int]]
    known: int

    @property
    def outputs_equal(self) -> int:
        """Of all prompts."""
        return sum(a == b for a, b in zip(self.served.outputs, self.plain, strict=True))

    @property
    def our_accept_length(self) -> float:
        return mean([length for result in self.reference for length in result.accept_lengths])

    @property
    def known_accept_length(self) -> float | None:
        """vLLM's, on the texts that the head has seen."""
        if not self.known:
            return None
        pairs = list(zip(self.served.steps, self.reference, strict=True))[: self.known]
        return mean([len(step.emitted) for steps, ours in pairs for step in steps[1 : 1 + len(ours.draft_tokens)]])

    def drafts(self) -> list[tuple[int, int, int]]:
        """(prompt, vLLM's draft, ours) of every slot of every step that our loop made."""
        found = []
        for prompt, (steps, result) in enumerate(zip(self.served.steps, self.reference, strict=True)):
            for step, ours in zip(steps, result.draft_tokens, strict=False):
                found += [(prompt, theirs, own) for theirs, own in zip(step.drafts, ours, strict=True)]
        return found


def mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers)
