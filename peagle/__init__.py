"""Hold the console command `peagle` (`peagle.__main__`), and in a wheel the packages that only it needs."""

from peagle_core import __version__

__all__ = ["__version__"]
