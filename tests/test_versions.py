"""Every dependency has a tested upper bound, and what was tested is written down."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
TESTED: dict[str, list[str]] = PROJECT["tool"]["vidssl"]["tested"]


def needed() -> dict[str, Requirement]:
    project = PROJECT["project"]
    lines = [*project["dependencies"], *PROJECT["build-system"]["requires"]]
    lines += [line for extra in project["optional-dependencies"].values() for line in extra]
    found = [Requirement(line) for line in lines]
    return {requirement.name: requirement for requirement in found if requirement.name != "vidssl"}


def test_every_dependency_has_an_upper_bound_and_a_row_of_tested_versions():
    for name, requirement in needed().items():
        assert {"<", "<=", "=="} & {part.operator for part in requirement.specifier}, f"{name} has no upper bound"
    assert set(TESTED) == {"python", *needed()}


def test_every_python_that_may_be_installed_on_was_tested_with_versions_inside_the_bounds():
    pythons = SpecifierSet(PROJECT["project"]["requires-python"])
    assert TESTED["python"] == [f"3.{minor}" for minor in range(20) if f"3.{minor}.1" in pythons]
    for name, requirement in needed().items():
        assert len(TESTED[name]) == len(TESTED["python"]), name
        assert all(tested in requirement.specifier for tested in TESTED[name]), name


def test_a_bound_is_no_wider_than_one_release_after_what_was_tested():
    for name, requirement in needed().items():
        newest = max(Version(tested) for tested in TESTED[name])
        bound = next(Version(part.version) for part in requirement.specifier if part.operator == "<")
        after = {(newest.major + 1, 0), (newest.major, newest.minor + 1)}
        assert (bound.major, bound.minor) in after, f"{name}: {newest} was tested, {requirement.specifier} is allowed"


@pytest.mark.parametrize("name", sorted(needed()))
def test_what_is_installed_lies_inside_the_bounds(name):
    try:
        installed = version(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed here (a tool for development)")
    assert installed in needed()[name].specifier, f"{name} {installed} was never tested on {sys.version_info[:2]}"
