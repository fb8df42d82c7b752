"""Methods alone on a GPU: training steps, `item`, `evidence`, `infer`, `reward`, beside what the GPU can do.

    python jobs/benchmarks/gpu.py [--quick --out FOLDER] [--methods NAME …]

Embeddings are 4,096 wide. The limit is the larger of two times: the bytes that a work must move (inputs read
once, results written once) at the rate of a large copy, and the flops that it must do in D-wide products, or
in a reward's, at the rate of a large square product in the same precision. Both rates are measured in the
same run. Time is that between events on the GPU, after a warm-up; memory is what a work takes beyond its
inputs.

- A training step is one of `raypref.train.loop.train`: loss, backward, clipping, AdamW, and the figures it
  yields. Its limit counts embeddings once, weights and moments read and written, gradients written and read,
  and products forward and backward. Comparisons lie on the GPU; `from_host` begins with a step's copy, as
  the loop makes it, and its limit is such a copy alone, from page-locked memory. Users are the recipe's, or
  eight times as many. `kernels` says how many a step starts, and for how much of it they run.
- `infer` and `reward` are of 10,000 users, with 16 comparisons each and with the same 1,000 candidates.
- Products are in float32, as the code runs; in TF32, which `torch.set_float32_matmul_precision` allows; or
  in bfloat16, by autocast. `error` is ‖x − y‖ / ‖y‖, y in float64 from the same embeddings.
- Each method must say the same as on a CPU, within `same`, and its loss must fall.

A method or part that fails is written down as such, and the rest goes on. Writes `results/gpu.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from gpu_case import METHODS, abilities
from gpu_measuring import QUICK, SAME, Measuring, Plan, attempted
from recording import options, parse, save, surroundings

FILE = "gpu.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write down; 1 where a part failed or a method is not right."""
    parser = options(__doc__, FILE)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=tuple(METHODS))
    given = parse(parser, arguments)
    if not torch.cuda.is_available() and not given.quick:
        parser.error("no GPU here; --quick rehearses on a CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = QUICK if given.quick else Plan()
    found: dict[str, Any] = {
        "command": "python jobs/benchmarks/gpu.py",
        **surroundings("torch"),
        "device": _described(device),
        "plan": vars(plan),
        "same": SAME,
        "peaks": abilities(device, plan.side, plan.numbers),
        "methods": {},
    }
    for name in given.methods:
        found["methods"][name] = attempted(Measuring(name, plan, device, found["peaks"]).all)
        # What is known stays known if the next method brings the process down.
        save(given.out / FILE, found)
        _say(name, found["methods"][name])
    print(found["device"], {name: f"{value:.3g}" for name, value in found["peaks"].items()})
    wrong = {name: faults(figures) for name, figures in found["methods"].items()}
    for name, what in wrong.items():
        print(f"{name}: {', '.join(what) or 'right'}")
    return int(any(wrong.values()))


def faults(figures: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a method: what failed, is not the same as on a CPU, or has not learned."""
    if "failed" in figures:
        return [figures["failed"]]
    found: list[str] = []
    for part, value in figures.items():
        rows = value if isinstance(value, list) else [value]
        found += [f"{part} failed: {row['failed']}" for row in rows if "failed" in row]
        for row in rows:
            first, last = row.get("loss", (1.0, 0.0))
            if not last < first:
                found.append(f"{part}: the loss went from {first:.4f} to {last:.4f}")
    away = figures["correct"].get("apart", {})
    return found + [
        f"{what} is {value:.1e} from a CPU's" for what, value in away.items() if not value <= SAME
    ]


def _described(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"name": "cpu"}
    about = torch.cuda.get_device_properties(device)
    return {
        "name": about.name,
        "memory_bytes": about.total_memory,
        "multiprocessors": about.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def _say(name: str, figures: Mapping[str, Any]) -> None:
    print(name, figures.get("correct"))
    for part in ("training", "from_host", "rows", "infer", "reward"):
        value = figures.get(part, [])
        for row in value if isinstance(value, list) else [value]:
            if "failed" in row:
                print(f"  {part:10}{row['failed']}")
                continue
            unit = next(key for key in row if f"{key}_s" in row)
            print(
                f"  {part:10}{row.get('what', row.get('users', '')):>9} {row.get('dtype', ''):9}"
                f"{row['precision']:9}{row[f'{unit}_s']['median']:12.4g} {unit}/s, {row['share']:.3f} of "
                f"{row['limit']:.3g} ({row['bound']}), {(row['peak_bytes'] or 0) / 2**30:.2f} GiB "
                f"{row.get('loss', '')}{row.get('error', '')}",
                flush=True,
            )


if __name__ == "__main__":
    raise SystemExit(main())
