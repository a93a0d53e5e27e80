"""What would be installed, and with what: ranges, declared imports, files of the wheel. Needs no network."""

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = [Requirement(text) for text in PROJECT["dependencies"]]
DEV = [Requirement(text) for text in PROJECT["optional-dependencies"]["dev"]]
EXTRAS = ("parquet", "ssm")  # imported where they are used
OPTIONAL = [Requirement(text) for extra in EXTRAS for text in PROJECT["optional-dependencies"][extra]]
OLDEST = {"torch": "2.11.0", "triton": "3.6.0", "transformers": "5.17.0"}
PYTESTS = {"packaging", "tomli"}  # come with pytest


@pytest.mark.parametrize("name", OLDEST)
def test_ranges_admit_the_oldest_set_and_what_comes(name):
    (wanted,) = [requirement for requirement in REQUIRED if requirement.name == name]
    assert Version(OLDEST[name]) in wanted.specifier
    assert Version("99.0") in wanted.specifier


@pytest.mark.parametrize("requirement", [*REQUIRED, *DEV, *OPTIONAL], ids=lambda requirement: requirement.name)
def test_nothing_is_pinned(requirement):
    assert {spec.operator for spec in requirement.specifier} == {">="}, str(requirement)


def environment(system, machine):
    return {"sys_platform": system, "platform_machine": machine}


@pytest.mark.parametrize(
    ("name", "system", "machine", "wanted"),
    [
        ("decord", "linux", "x86_64", True),
        ("decord", "linux", "aarch64", False),
        ("decord", "darwin", "x86_64", False),
        ("triton", "linux", "x86_64", True),
        ("triton", "darwin", "arm64", False),
        ("xformers", "linux", "x86_64", True),
        ("xformers", "win32", "AMD64", False),
        ("av", "darwin", "arm64", True),
    ],
)
def test_wheels_are_asked_for_where_they_exist(name, system, machine, wanted):
    (requirement,) = [requirement for requirement in REQUIRED if requirement.name == name]
    marker = requirement.marker
    assert (marker is None or marker.evaluate(environment(system, machine))) == wanted


def imported(folder):
    """Top-level names of what the Python files of a folder import, anywhere in them."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            yield from (name.partition(".")[0] for name in names)


def third_party(folder):
    return set(imported(folder)) - set(sys.stdlib_module_names) - {"tefusion"}


def canonical(name):
    return re.sub("[-_.]+", "-", name).lower()


def undeclared(modules, requirements):
    """Modules that none of the requirements installs; one that is not installed here goes by its own name."""
    declared = {canonical(requirement.name) for requirement in requirements}
    owners = packages_distributions()
    return {m for m in modules if not {canonical(name) for name in owners.get(m, [m])} & declared}


def test_every_import_of_the_package_is_declared():
    modules = third_party(ROOT / "tefusion")
    assert {"torch", "transformers", "av", "decord"} <= modules
    assert undeclared(modules, [*REQUIRED, *OPTIONAL]) == set()


def test_every_import_beside_the_package_is_declared():
    folders = [ROOT / name for name in ("tests", "benchmarks", "examples")]
    own = {path.stem for folder in folders for path in folder.glob("*.py")}
    modules = set[str]().union(*map(third_party, folders))
    assert undeclared(modules - own - PYTESTS, [*REQUIRED, *DEV, *OPTIONAL]) == set()


def test_an_import_that_nobody_declares_is_found():
    assert undeclared({"torch", "einops", "pandas_of_nobody"}, REQUIRED) == {"pandas_of_nobody"}


def test_the_wheel_holds_data_and_types(tmp_path):
    """setuptools copies what a wheel would hold."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "-e", tmp_path, "build_py", "-d", tmp_path / "lib"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = {path.relative_to(tmp_path / "lib").as_posix() for path in (tmp_path / "lib").rglob("*") if path.is_file()}
    source = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tefusion").rglob("*.py")}
    data = {"tefusion/py.typed", "tefusion/data/paper_tables.csv", "tefusion/data/paper_table3.csv"}
    assert built == source | data


def test_data_is_found_where_it_is_installed():
    assert files("tefusion").joinpath("py.typed").is_file()
    assert len(files("tefusion").joinpath("data/paper_tables.csv").read_text().splitlines()) > 20


def test_names_that_the_metadata_promises_exist():
    from tefusion import __version__, cli

    assert PROJECT["version"] == __version__
    assert PROJECT["scripts"] == {"tefusion": "tefusion.cli:main"}
    assert callable(cli.main)
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / PROJECT["license-files"][0]).read_text()
    assert (ROOT / PROJECT["readme"]).is_file()
    assert PROJECT["requires-python"] == ">=3.10"
