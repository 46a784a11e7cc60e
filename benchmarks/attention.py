"""What self-attention costs as sequences grow: time and memory against length.

Four modules with the same weights, on the same input, in turn within one process:

- written out: ``MultiHeadAttention(fused=False)``, which makes the (T, T) matrix of weights;
- fused: ``MultiHeadAttention(fused=True)``, torch's kernel, which does not;
- torch.nn: ``torch.nn.MultiheadAttention`` as it is called by default, returning the weights;
- torch.nn, no weights: the same with ``need_weights=False``.

Time is the median over rounds of a forward pass, and of a forward and a backward pass. Memory is the peak of
what torch's allocator held beyond the input and the weights, during a forward and a backward pass. The
exponent is the slope of the logarithm of the cost against the logarithm of the length, by least squares, from
``--fit-from`` on. Usage::

    OMP_NUM_THREADS=2 python benchmarks/attention.py [--longest 2048] [--batch 1] [--dim 256] [--heads 4]
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from recsys_lib.attention import MultiHeadAttention

COSTS = {"forward": "ms", "both ways": "ms", "peak": "MB"}


def make_forms(dim: int, n_heads: int) -> dict[str, Callable[[Tensor], Tensor]]:
    torch.manual_seed(0)
    ours = {fused: MultiHeadAttention(dim, n_heads, fused=fused) for fused in (False, True)}
    ours[True].load_state_dict(ours[False].state_dict())
    theirs = nn.MultiheadAttention(dim, n_heads, batch_first=True)
    parts = [ours[True].query, ours[True].key, ours[True].value]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.out_proj.load_state_dict(ours[True].output.state_dict())
    return {
        "written out": ours[False],
        "fused": ours[True],
        "torch.nn": lambda x: theirs(x, x, x)[0],
        "torch.nn, no weights": lambda x: theirs(x, x, x, need_weights=False)[0],
    }


def forward(form: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.no_grad():
        form(x)


def both_ways(form: Callable[[Tensor], Tensor], x: Tensor) -> None:
    form(x).sum().backward()


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def peak_bytes(form: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """The most that torch's allocator held at once, beyond what it held before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        both_ways(form, x)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    steps = [event for event in events if event.get("name") == "[memory]"]
    steps.sort(key=lambda event: event["ts"])
    held = [step["args"]["Total Allocated"] for step in steps]
    return max(held) - (held[0] - steps[0]["args"]["Bytes"])


def exponent(lengths: list[int], costs: list[float]) -> float:
    """The slope of log(cost) against log(length)."""
    x, y = [math.log(length) for length in lengths], [math.log(cost) for cost in costs]
    return statistics.linear_regression(x, y).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--longest", type=int, default=2048)
    parser.add_argument("--fit-from", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()

    forms = make_forms(args.dim, args.heads)
    lengths = [2**i for i in range(6, int(math.log2(args.longest)) + 1)]
    table: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {vars(args)}")
    for length in lengths:
        x = torch.randn(args.batch, length, args.dim, requires_grad=True)
        expected = forms["torch.nn"](x)
        for name, form in forms.items():
            torch.testing.assert_close(form(x), expected, atol=1e-5, rtol=1e-5)
            table[name, "peak"][length] = peak_bytes(form, x) / 1e6
        times = defaultdict(list)
        for _ in range(args.rounds):
            for name, form in forms.items():
                times[name, "forward"].append(milliseconds(partial(forward, form, x)))
                times[name, "both ways"].append(milliseconds(partial(both_ways, form, x)))
        for key, values in times.items():
            table[key][length] = statistics.median(values)
        print(f"length {length} done", flush=True)

    fitted = [length for length in lengths if length >= args.fit_from]
    for cost, unit in COSTS.items():
        print(f"\n{cost} ({unit})".ljust(24) + "".join(f"{length:>9}" for length in lengths) + "  exponent")
        for name in forms:
            row = table[name, cost]
            slope = exponent(fitted, [row[length] for length in fitted]) if len(fitted) > 1 else math.nan
            print(f"{name:<23}" + "".join(f"{row[length]:9.2f}" for length in lengths) + f"  {slope:8.2f}")


if __name__ == "__main__":
    main()
