"""Write what a server computes to files: the target's states for training, the drafter's passes for debugging."""
