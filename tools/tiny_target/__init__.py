"""A target that two cores train in minutes, and heads for it: what the ablations and vLLM's comparison run on.

It knows the character tables of Python's standard library and nothing else; what a head gets there says how parts agree
and which of two drafters is better, not how fast a real model becomes.
"""
