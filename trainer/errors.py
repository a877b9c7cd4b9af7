"""The one exception of the trainer that is not `InputError`: the configuration, not the input, is wrong."""

from peagle_core.errors import InputError


class ConfigError(InputError):
    """The configuration is wrong: commands end with exit code 2."""

    exit_code = 2
