"""Check what a target's directory holds before it is loaded, and say in a sentence what cannot be trained for."""

from __future__ import annotations

import json
from pathlib import Path

from peagle_core.errors import InputError, first_line

WEIGHTS = "*.safetensors"
ADAPTER = "adapter_config.json"
OTHERS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
SAVE = "AutoModelForCausalLM.from_pretrained(...).save_pretrained(NEW_DIRECTORY)"
GGUF = ".gguf"
UNPACK = (
    "GGUF files are not read; give the safetensors model that it was made from "
    "(of SmolLM2-135M-Instruct, 'python -m tools.real_target DIRECTORY' makes one)"
)


def check_is_no_file(target: str) -> None:
    """Raise InputError for a single file, which is never a target."""
    if Path(target).suffix == GGUF and Path(target).is_file():
        raise InputError(f"target {target!r} cannot be loaded: {UNPACK}")
    if Path(target).is_file():
        raise InputError(f"target {target!r} is a file; give the directory that it lies in, or a name on the hub")


def check_files(target: str) -> None:
    """Raise InputError for a local directory without safetensors files, an adapter and a single file.

    Of a name on a hub nothing is known before it is downloaded (see `cannot_be_loaded`).
    """
    check_is_no_file(target)
    directory = Path(target)
    if not directory.is_dir() or any(directory.glob(WEIGHTS)):
        if (directory / ADAPTER).is_file() and not (directory / "config.json").is_file():
            raise InputError(f"target {target!r} is an adapter (LoRA); merge it into its base model first")
        return
    others = sorted(path.name for pattern in OTHERS for path in directory.glob(pattern))
    if not others:
        raise InputError(f"target {target!r} cannot be loaded: it has no *.safetensors file")
    if all(name.endswith(GGUF) for name in others):
        raise InputError(f"target {target!r} cannot be loaded: it has no *.safetensors file, and {UNPACK}")
    raise InputError(
        f"target {target!r} cannot be loaded: it has no *.safetensors file, and files such as {others[0]} are not "
        f"read; save it once with transformers: {SAVE}"
    )


def cannot_be_loaded(target: str, error: Exception) -> InputError:
    """Return the sentence for a target that transformers did not load."""
    said = first_line(error)
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return InputError(
            f"target {target!r} needs Python code of its own repository, which is never run; only architectures that "
            "transformers has can be trained for"
        )
    if method := _quantisation(target):
        return InputError(
            f"target {target!r} is quantised ({method}) and cannot be loaded here ({said}); give the model that it was "
            "made from"
        )
    return InputError(f"target {target!r} cannot be loaded ({said})")


def _quantisation(target: str) -> str | None:
    try:
        raw = json.loads((Path(target) / "config.json").read_bytes())
        return (raw.get("quantization_config") or {}).get("quant_method")
    except (OSError, ValueError, AttributeError):
        return None
