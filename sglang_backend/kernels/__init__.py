"""Triton kernels of the serving path; each has its torch reference in sglang_backend.draft_inputs."""
