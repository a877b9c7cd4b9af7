"""Build the wheel; everything else is said in pyproject.toml.

In the repository `trainer` and `tools` are packages at the top. In a wheel they would shadow, or be shadowed by, the
`tools` folder of half of all repositories. So a wheel carries them inside of `peagle` (`peagle/bundled`), where only
the command `peagle` finds them, and of `tools` what users need. An editable install leaves everything where it is.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

BUNDLED = ("trainer", "tools")
LEFT_OUT = ("tools.ablations", "tools.demo", "tools.questions", "tools.real_target", "tools.tiny_target")


def belongs(name: str, packages: tuple[str, ...]) -> bool:
    """Return whether a package or module is one of some packages, or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


class BuildWheel(build_py):
    """Copy packages to the places that they have in a wheel."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.editable_mode:
            return
        places = {name: f"peagle.bundled.{name}" if belongs(name, BUNDLED) else name for name in self.packages}
        self.packages = [place for name, place in places.items() if not belongs(name, LEFT_OUT)]
        self.package_dir = {place: name.replace(".", "/") for name, place in places.items()}
        self.package_data = {places[name]: files for name, files in self.package_data.items()}

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [it for it in found if not belongs(f"{it[0]}.{it[1]}".removeprefix("peagle.bundled."), LEFT_OUT)]


class Info(egg_info):
    """Say which names a wheel puts at the top."""

    def run(self) -> None:
        super().run()
        names = {name.partition(".")[0] for name in self.distribution.packages}
        Path(self.egg_info, "top_level.txt").write_text("".join(f"{name}\n" for name in sorted(names - set(BUNDLED))))


setup(cmdclass={"build_py": BuildWheel, "egg_info": Info})
