"""Train in several processes: `processes` says who we are and exchanges facts, `drafter_weights` shares the drafter."""
