"""Where hidden states come from: `base` is the interface, `in_process` a transformers target beside the drafter."""
