"""The tools stand on all the packages: their tests use the helpers of the packages' tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / package) for package in ("peagle_core", "trainer")]
