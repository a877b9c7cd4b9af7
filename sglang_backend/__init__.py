"""P-EAGLE inside SGLang: `--speculative-algorithm PEAGLE`, and a CPU reference platform (`SGLANG_PLATFORM=peagle_cpu`).

The only package of this project that imports sglang. SGLang finds it through entry points (see pyproject.toml);
nothing here is imported by users. What it changes in SGLang is one table, `hooks.py`.
"""

NAME = "PEAGLE"  # of the algorithm; SGLang spells it in capitals wherever it asks
