"""Where code runs, and random numbers that nothing else moves.

Random numbers come from a ``torch.Generator`` that the caller seeds. Nothing here reads or moves the global
random state, so a result does not depend on what ran before, and leaves no trace in what runs after.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["in_float32", "isolated_rng", "resolve_device", "seed_generator", "total_memory"]


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Turns a name into a device that exists here.

    Args:
        device: ``"auto"`` takes what the environment variable ``RECSYS_DEVICE`` names, else CUDA, then
            Apple's MPS, then the CPU; anything else is what torch understands.

    Raises:
        ValueError: the name is not a device's, or that device is not on this machine.
    """
    if isinstance(device, str) and device == "auto":
        wanted = os.environ.get("RECSYS_DEVICE") or "auto"
        if wanted != "auto":
            try:
                return resolve_device(wanted)
            except ValueError as error:
                raise ValueError(f"RECSYS_DEVICE={wanted}: {error}") from error
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f'device {device!r} is not one that torch knows; use "auto", "cpu" or "cuda"'
        ) from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f'device "{resolved}" was asked for, but no CUDA device is here; use "auto" or "cpu"'
        )
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(f'device "{resolved}" was asked for, but only {torch.cuda.device_count()} are here')
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError('device "mps" was asked for, but this is no machine with MPS; use "auto" or "cpu"')
    return resolved


def seed_generator(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own on ``device``, seeded; the global random state is neither read nor moved."""
    generator = torch.Generator(device=resolve_device(device))
    generator.manual_seed(int(seed))
    return generator


def total_memory(device: str | torch.device = "cpu") -> int | None:
    """Bytes of memory that a device has, in use or not; None where the system does not say."""
    resolved = resolve_device(device)
    if resolved.type == "cuda":
        return int(torch.cuda.get_device_properties(resolved).total_memory)
    try:  # MPS shares the machine's memory
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, some systems not these names
        return None
    return total if total > 0 else None


@contextmanager
def in_float32() -> Iterator[None]:
    """Runs a block, or a function that it decorates, with float32 as torch's default type, then puts it back.

    What a model keeps is float32. A tensor made beside it without a type must be so too, also in a program
    that has set another default for its own work.
    """
    default = torch.get_default_dtype()
    if default == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@contextmanager
def isolated_rng(seed: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Runs a block on global random numbers seeded by ``seed``, then puts the global state back.

    For code that cannot take a generator: dropout, and the default initialization of layers. Covers the CPU
    and ``device``.
    """
    resolved = resolve_device(device)
    cpu_state = torch.get_rng_state()
    if resolved.type == "cuda":
        device_state = torch.cuda.get_rng_state(resolved)
    elif resolved.type == "mps":
        device_state = torch.mps.get_rng_state()
    try:
        # torch.manual_seed would also reseed every other device, whose state was not kept.
        torch.default_generator.manual_seed(int(seed))
        if resolved.type == "cuda":
            with torch.cuda.device(resolved):
                torch.cuda.manual_seed(int(seed))
        elif resolved.type == "mps":
            torch.mps.manual_seed(int(seed))
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if resolved.type == "cuda":
            torch.cuda.set_rng_state(device_state, resolved)
        elif resolved.type == "mps":
            torch.mps.set_rng_state(device_state)
