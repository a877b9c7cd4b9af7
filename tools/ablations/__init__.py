"""Run the paper's ablations and some of our own on the tiny target: `python -m tools.ablations`.

Read `contrasts` first (what is varied and compared), then `trial` (one run), `schedule` (all of them), `record`
(what is kept of them), `statistics` (noise and verdicts) and `document` (the page).
"""
