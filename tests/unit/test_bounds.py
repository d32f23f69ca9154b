"""The lower bounds of pyproject.toml are those that `make test-lowest` installs, and those of the conda recipe."""

from __future__ import annotations

import re
import tomllib

import yaml
from support import ROOT

from dnabert_rm import __version__

REQUIREMENT = re.compile(r"([A-Za-z0-9_-]+)>=([0-9.]+)")


def bounds() -> dict[str, str]:
    """Every requirement of pyproject.toml with a lower bound, but for the tools of the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for name in extras if name != "test" for text in extras[name])]
    found = [REQUIREMENT.fullmatch(text) for text in texts]
    return {match[1]: match[2] for match in found if match}


def test_the_lowest_versions_claimed_are_those_that_are_tested() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    found = bounds()
    assert len(found) > 15
    for name, version in found.items():
        assert pinned[name].split(".")[: version.count(".") + 1] == version.split("."), name


def test_the_conda_recipe_has_the_requirements_scripts_and_version_of_the_project() -> None:
    recipe = yaml.safe_load((ROOT / "packaging" / "conda-recipe.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {text.replace("torch>=", "pytorch>=") for text in project["dependencies"]}
    needed.add(f"python{project['requires-python']}")
    assert {text.replace(" ", "") for text in recipe["requirements"]["run"]} == needed
    scripts = {f"{name} = {target}" for name, target in project["scripts"].items()}
    assert set(recipe["build"]["python"]["entry_points"]) == scripts
    assert recipe["context"]["version"] == __version__
