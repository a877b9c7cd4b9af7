"""Make what all runs share: the tiny target, its generations as data, and more held-out prompts than it comes with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from peagle_core.atomic import new_directory
from tools.tiny_target.corpus import heldout_prompts, load_tokenizer
from tools.tiny_target.head import HeadRecipe, build_generations, continue_greedily
from tools.tiny_target.target import build_target

HELDOUT_PROMPTS = 96


@dataclass(frozen=True)
class Inputs:
    """Name what every run reads. target: a directory. train, heldout: .jsonl files. states: theirs, if stored."""

    target: Path
    train: Path
    heldout: Path
    states: Path | None = None

    def missing(self) -> list[Path]:
        """Return what is not there."""
        directories = [self.target, *([] if self.states is None else [self.states])]
        files = [self.train, self.heldout]
        return [path for path in directories if not path.is_dir()] + [path for path in files if not path.is_file()]

    def overrides(self) -> list[str]:
        stored = [] if self.states is None else [f"states.directory={self.states}"]
        return [f"target={self.target}", f"data.train={self.train}", f"data.heldout={self.heldout}", *stored]

    def digest(self) -> str:
        """Return a digest that tells whether a result belongs to this target and this data."""
        digest = hashlib.sha256()
        for path in (*sorted(self.target.glob("*.safetensors")), self.train, self.heldout):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


def inputs_of(tiny: Path, directory: Path) -> Inputs:
    """Return where everything is, or will be."""
    return Inputs(tiny / "target", tiny / "generations" / "train.jsonl", directory / "heldout" / "heldout.jsonl")


def build_inputs(tiny: Path, directory: Path) -> None:
    """Make what is not there yet: target and training data under `tiny`, held-out text under `directory`."""
    build_target(tiny)
    build_generations(tiny)
    build_heldout(tiny, directory)


def build_heldout(tiny: Path, directory: Path) -> Path:
    """Write directory/heldout/heldout.jsonl: HELDOUT_PROMPTS held-out prompts, continued greedily by the target."""
    from transformers import LlamaForCausalLM

    path = directory / "heldout"
    if path.is_dir():
        return path
    target = LlamaForCausalLM.from_pretrained(build_target(tiny)).eval()
    starts = heldout_prompts(tiny, HELDOUT_PROMPTS)
    documents = continue_greedily(target, starts, HeadRecipe(), load_tokenizer(tiny).eos_token_id)
    with new_directory(path, existing="replace") as partial:
        (partial / "heldout.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    return path
