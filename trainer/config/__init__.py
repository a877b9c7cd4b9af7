"""The configuration of a run: `run_config` is the whole, of `sections`; `load` reads it from YAML and overrides."""

from trainer.config.load import load_config
from trainer.config.run_config import RunConfig

__all__ = ["RunConfig", "load_config"]
