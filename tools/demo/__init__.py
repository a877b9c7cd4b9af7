"""The demo: the shipped heads of a real chat model, served beside no speculation (`python -m tools.demo`)."""
