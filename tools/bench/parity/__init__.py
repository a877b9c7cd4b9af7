"""Serve random heads and hold every drafter pass against the reference loop: is the plugin right on this machine?

    python -m tools.bench parity                            on this machine's GPU
    SGLANG_PLATFORM=peagle_cpu python -m tools.bench parity  on the CPU platform
    python -m tools.bench parity --case default --case adaptive --server-args "--attention-backend triton"

Acceptance is simulated with the drafts of the head (SGLang's SGLANG_SIMULATE_ACC_LEN, real-draft-token), so that a head
that knows nothing accepts 1 to K+1 tokens a step, and the text is still what both models saw. The server records every
drafter pass, after prefills and in decode steps; each is compared with one pass of peagle_core.generate over the same
tokens, in float32 and without any cache. A case is a server: other K, pages, chunks, adaptive K, dtypes, attention.

Says `ok` or the first pass that differs, for each case; report.json holds it all. Exit code 1 where a case is not ok.
"""

from tools.bench.parity.command import add_arguments, run

__all__ = ["add_arguments", "run"]
