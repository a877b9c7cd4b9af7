"""The one exception that means "the user's input is wrong", so that every command can end in one sentence."""


class InputError(ValueError):
    """Bad input (a config, a checkpoint, data). Its message is one sentence that names the place."""
