"""Build hook: the wheel contains `ds_configs/`. All metadata is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Copy `ds_configs/` into the built package, where `dnabert_rm/config/deepspeed_config.py` looks for it."""

    def run(self) -> None:
        """Build the package. An editable install reads the folder of the checkout."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "dnabert_rm" / "ds_configs"
            shutil.copytree(ROOT / "ds_configs", target, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
