"""Programs that run in the environments of vLLM and speculators; they are started by path and import nothing of ours.

Python puts a started program's folder first on its path, so no file here may have the name of a package.
"""
