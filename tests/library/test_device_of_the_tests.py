"""``RECSYS_TEST_DEVICE`` decides where the tests run, and a device that is not here is no reason to pass."""

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def test_the_device_is_here(device):
    assert torch.zeros(1, device=device).device.type == device.type


def test_a_device_that_is_not_here_is_named():
    test = f"{__file__}::test_the_device_is_here"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", test],
        env=os.environ | {"RECSYS_TEST_DEVICE": "cuda:99"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "RECSYS_TEST_DEVICE: cuda:99\n" in done.stdout  # in the header
    assert 'RECSYS_TEST_DEVICE: device "cuda:99" was asked for, but ' in done.stdout
