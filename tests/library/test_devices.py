"""Where code runs, and random numbers of one's own."""

import contextlib
import os

import pytest
import torch

from recsys_lib.devices import isolated_rng, resolve_device, seed_generator, total_memory

# Devices.


def test_auto_takes_the_best_device_there_is(monkeypatch):
    monkeypatch.delenv("RECSYS_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")


def test_the_environment_may_decide_what_auto_means(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("RECSYS_DEVICE", "cpu")
    assert resolve_device() == torch.device("cpu")
    monkeypatch.setenv("RECSYS_DEVICE", "quantum")
    with pytest.raises(ValueError, match="RECSYS_DEVICE=quantum: device 'quantum' is not one"):
        resolve_device()


def test_a_device_that_is_not_here_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device is here"):
        resolve_device("cuda:0")
    with pytest.raises(ValueError, match="no machine with MPS"):
        resolve_device(torch.device("mps"))
    with pytest.raises(ValueError, match="'quantum' is not one that torch knows"):
        resolve_device("quantum")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="only 1 are here"):
        resolve_device("cuda:3")


# Random numbers.


def test_a_generator_is_independent_of_the_global_state():
    before = torch.get_rng_state()
    first = torch.randn(5, generator=seed_generator(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(7)
    assert torch.equal(torch.randn(5, generator=seed_generator(3)), first)
    assert not torch.equal(torch.randn(5, generator=seed_generator(4)), first)


def test_isolated_rng_repeats_itself_and_puts_the_state_back():
    before = torch.get_rng_state()
    with isolated_rng(5):
        first = torch.randn(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(9)
    with isolated_rng(5):
        assert torch.equal(torch.randn(4), first)
    with isolated_rng(6):
        assert not torch.equal(torch.randn(4), first)


def test_isolated_rng_puts_the_state_back_after_an_error():
    before = torch.get_rng_state()
    with contextlib.suppress(KeyError), isolated_rng(5):
        torch.randn(4)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


# Memory.


def test_the_memory_of_the_machine(monkeypatch):
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__, raising=False)
    assert total_memory("cpu") == 4_096_000
    sizes["SC_PHYS_PAGES"] = -1  # the system does not know

    def unknown(name):
        raise ValueError("unrecognized configuration name")

    assert total_memory("cpu") is None
    monkeypatch.setattr(os, "sysconf", unknown)
    assert total_memory("cpu") is None
    monkeypatch.delattr(os, "sysconf")
    assert total_memory("cpu") is None
