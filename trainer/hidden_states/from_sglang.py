"""Ask a SGLang server for hidden states, which it writes to files (sglang_backend/dump/hidden_states.py).

This is for targets that need tensor parallelism, or are quantised in a way that transformers does not run.

A row's documents are prompts of one request, each with a request id of its own. The server writes a file per id before
it answers, into a directory that both machines see; the files are read and removed here.
"""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path
from typing import Any

import httpx
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from peagle_core.config import default_aux_layer_ids
from peagle_core.config_formats import sglang_aux_layer_ids
from peagle_core.errors import InputError, one_line
from peagle_core.training import Batch
from trainer.data.packing import PackedRow
from trainer.errors import ConfigError
from trainer.hidden_states.base import StateSource, batch_of
from trainer.parallel import processes

CONNECT_TIMEOUT, TIMEOUT = 30.0, 1800.0  # seconds


class SGLangStates(StateSource):
    """Asks a server. store: the directory where the states go; made_by: what that notes about the numbers.

    Raises InputError when no such server answers at states.url, ConfigError when it captures other states.
    """

    rows_at_once = 16

    def __init__(
        self,
        target: str,
        url: str | None,
        head: Tensor,
        aux_layer_ids: tuple[int, ...],
        num_target_layers: int,
        store: Path,
    ) -> None:
        self.head = head
        self.launch = launch_line(target, aux_layer_ids)
        if url is None:
            raise ConfigError(f"states.engine: sglang needs states.url, of a server started with `{self.launch}`")
        self.url = url
        self.http = httpx.Client(base_url=self.url, timeout=httpx.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT))
        info = self._ask("GET", "/server_info")
        self.directory = self._directory(info)
        self._check_layers(info, aux_layer_ids, num_target_layers)
        quantised = f", {info['quantization']}" if info.get("quantization") else ""
        self.made_by = f"sglang, {info.get('dtype')}{quantised}"
        if info.get("model_path") != target:
            print(f"{self.url} serves {info.get('model_path')}; its states are taken for those of {target}")
        # Who asks: what a killed run left is known by it when the run goes on.
        place = f"{store.absolute()} {processes.rank()}"
        self.prefix = f"states-{hashlib.sha256(place.encode()).hexdigest()[:12]}-"
        for leftover in self.directory.glob(f"{self.prefix}*"):
            leftover.unlink(missing_ok=True)

    def __call__(self, row: PackedRow) -> Batch:
        documents = row.input_ids.split(row.lengths)
        ids = [f"{self.prefix}{uuid.uuid4().hex}" for _ in documents]
        files = [self.directory / f"{name}.safetensors" for name in ids]
        sampling = {"max_new_tokens": 1, "temperature": 0}
        prompts = [document.tolist() for document in documents]
        try:
            self._ask("POST", "/generate", {"input_ids": prompts, "rid": ids, "sampling_params": sampling})
            states = [self._read(file, len(prompt)) for file, prompt in zip(files, prompts, strict=True)]
        finally:
            for file in files:
                file.unlink(missing_ok=True)
        aux, final = [s["aux"] for s in states], [s["final_hidden"] for s in states]
        return batch_of(row, aux, final, self.head.device, f"{self.url}: the target's hidden states are not finite")

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            response = self.http.request(method, path, json=body)
            if response.is_success:
                return response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise InputError(
                f"{self.url}: no SGLang server answers ({one_line(error)}); start `{self.launch}`"
            ) from None
        raise InputError(f"{self.url}{path}: HTTP {response.status_code} ({one_line(response.text)})")

    def _directory(self, info: Any) -> Path:
        try:
            directory = Path(info["internal_states"][0]["peagle_states"]["directory"])
        except (KeyError, IndexError, TypeError):
            raise ConfigError(f"{self.url}: this server writes no hidden states; start `{self.launch}`") from None
        if not directory.is_dir():
            raise InputError(f"{directory}, where {self.url} writes hidden states, is not there on this machine")
        return directory

    def _check_layers(self, info: Any, aux_layer_ids: tuple[int, ...], num_target_layers: int) -> None:
        outputs = info.get("return_aux_hidden_state_layer_ids")
        found = tuple(k + 1 for k in outputs) if outputs else default_aux_layer_ids(num_target_layers)
        if found != aux_layer_ids:
            raise ConfigError(
                f"{self.url}: captures the states entering layers {list(found)}, this run wants "
                f"{list(aux_layer_ids)}; start `{self.launch}`"
            )

    def _read(self, file: Path, length: int) -> dict[str, Tensor]:
        try:
            states = load(file.read_bytes())
        except FileNotFoundError:
            raise InputError(
                f"{file}: {self.url} answered and did not write it; its log says why, or {file.parent} is another "
                "directory there than here"
            ) from None
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}: cannot be read ({error})") from None
        width = self.head.shape[1]
        for name, wanted in (("aux", (length, 3 * width)), ("final_hidden", (length, width))):
            if states[name].shape != wanted:
                raise InputError(f"{self.url}: {name} has shape {tuple(states[name].shape)}, expected {wanted}")
        return states


def launch_line(target: str, aux_layer_ids: tuple[int, ...]) -> str:
    """Return the command of a server that captures what is wanted. SGLang counts layers by their output, one less."""
    layers = " ".join(map(str, sglang_aux_layer_ids(aux_layer_ids)))
    return (
        f"PEAGLE_STATES_DIR=/dev/shm/states python -m sglang.launch_server --model-path {target} --disable-radix-cache "
        f"--enable-return-aux-hidden-states --speculative-algorithm EAGLE3 --return-aux-hidden-state-layer-ids {layers}"
    )
