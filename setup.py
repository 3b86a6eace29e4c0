"""What pyproject.toml cannot say: the YAML in experiments/ travels in a wheel, as mefar.experiments."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mefar*", "datamodules*"]), "mefar.experiments"],
    package_dir={"mefar.experiments": "experiments"},
)
