"""What all tests share: one thread, no network, no report to anybody, and the same draws whatever ran before.

MEFAR_TEST_SEED=7 gives other draws, of hypothesis too: a test that then fails depends on its luck.
"""

import os
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "mefar-tests-without-models")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import cv2

cv2.setNumThreads(1)  # a process that tests fork must not wait for threads that it does not have


# On a busy machine any example may take long, and `make test` says the same every time.
settings.register_profile(
    "mefar",
    deadline=None,
    derandomize="MEFAR_TEST_SEED" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("mefar")


def seed_everything() -> None:
    import numpy as np
    import torch

    seed = int(os.environ.get("MEFAR_TEST_SEED", "0"))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, the state that libraries draw from
    torch.manual_seed(seed)


@pytest.fixture(scope="session")
def tiny_corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's corpora at their tiny size; to be read, not to be changed."""
    from mefar.__main__ import main

    root = tmp_path_factory.mktemp("corpora")
    assert main(["make-demo", str(root), "--size", "tiny"]) == 0
    return root


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    seed_everything()


@pytest.fixture(autouse=True)
def _ctrl_c_works() -> Iterator[None]:
    """Lightning leaves it ignored after it has come, and every process started later would ignore it too."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    """What several tests share is the same whichever of them asks for it first, in whichever process."""
    if fixturedef.scope != "function":
        seed_everything()
