"""The page that sparse.py writes: its targets, its tables, and why a target is missed."""

from collections.abc import Sequence
from typing import Any

from interleaved import Case, number, table
from sparse_peers import LINNET, peers

__all__ = ["GRID", "MEMORY", "SPARSITIES", "TARGETS", "WHY", "page"]

SPARSITIES = (0.8, 0.9, 0.95, 0.99)
GRID = ((1024, 256), (4096, 256), (1024, 32), (4096, 32), (1024, 1), (4096, 1))
TARGETS: dict[tuple[int, int], tuple[float, ...]] = {
    (1024, 256): (1.1, 2.3, 4.5, 12),
    (4096, 256): (1.0, 2.2, 4, 14),
    (1024, 32): (1.5, 2.4, 4.2, 11),
    (4096, 32): (1.7, 3.1, 5.5, 19),
    (4096, 1): (1.2, 2.4, 4.7, 20),
}
"""Times as fast as nn.Linear, by (size, batch), at the sparsities in order."""
MEMORY = {(100_000, 10**6, 32): 150, (100_000, 10**6, 256): 500, (10**6, 10**7, 32): 1500}
"""Size, connections and batch -> megabytes allowed."""
BUILD_SECONDS = 2.0

WHY = """\
Where the time goes, measured on the machine named above:

* **The products.** y and dL/dx are sums of weighted rows, for which torch has FBGEMM's `embedding_bag`: it adds them up
  in registers, at 29 to 44 GFLOP/s on this core, where torch's CSR product (MKL) has 14 to 19 and a dense product 80 to
  90. The sampled product for dL/dW, `sampled_addmm`, runs at 10 to 19: below a sparsity of 0.95 it is now the largest
  part of a step. A kernel for it that keeps its tiles in registers is the next thing to build.
* **Transposes.** These products want samples along the last axis: four or five transposed copies a step (x, y, g, dx),
  0.7 µs a sample for 1024 units from the cache, twice that from memory; at a sparsity of 0.99 some 40 % of a step.
* **Calls.** A step makes about forty calls into torch, 0.3 ms here: at 1024, batch 32 and 0.99 that is half of it.
* **The transposed values.** dL/dx needs them in the order of the transpose, a random gather: at 4096 and a sparsity of
  0.8 it takes 15 ms, whatever the batch.
* **One sample** is a CSR product with a vector (MKL) and about 60 µs of calls.

Tried without success: the whole batch at once (its columns leave the cache: slower at 0.8 to 0.95), 16 columns at a
time (twice the calls), column-major operands (MKL is five to eight times slower).
"""

HEAD = """\
# The sparse layer beside nn.Linear and other packages

{machine}

Times as fast as nn.Linear of the same size in the same process: forward and backward with the gradients of input,
weight and bias, with a batch of 1 the forward alone. Candidate and baseline take turns, the fastest of all rounds
counts. For the targets linnet and nn.Linear are alone; in the tables all rows take turns, and find each other's data in
the cache. The processor is shared with others: figures vary by some 10 %. `python benchmarks/sparse.py` measures anew.
"""


def page(
    cases: Sequence[Case],
    grid: Sequence[tuple[int, int]],
    sparsities: Sequence[float],
    memory: Sequence[Any],
    reasons: dict[tuple[str, str], str],
    machine: str,
) -> str:
    """The whole page in Markdown."""
    speed = {(case.section, case.name): 1 / case.ratio for case in cases}
    parts = [HEAD.format(machine=machine)]
    judged = []
    for (n, batch), targets in TARGETS.items():
        for sparsity, target in zip(SPARSITIES, targets, strict=True):
            found = speed.get((f"alone {n} {batch}", f"{LINNET} {sparsity}"))
            if found is not None:
                verdict = "met" if found >= target else f"missed: {100 * found / target:.0f} % of it"
                judged.append([f"{n}², batch {batch}, sparsity {sparsity}", f"{target:g}", number(found), verdict])
    if judged:
        parts.append("## Targets\n\n" + table(["", "target", "measured", ""], judged) + "\n" + WHY)
    for n, batch in grid:
        base = next((min(case.base_seconds) for case in cases if case.section == f"{n} {batch}"), None)
        if base is None:
            continue
        lines = []
        for row in peers():
            found = [speed.get((f"{n} {batch}", f"{row.name} {sparsity}")) for sparsity in sparsities]
            why = reasons.get((row.name, f"{n} {batch}"), "")
            if any(found) or why:
                name = f"**{row.name}**" if row.name == LINNET else row.name
                shown = [number(value) if value else "–" for value in found]
                lines.append([name, *shown, "; ".join(filter(None, [row.note, why]))])
        if batch == 1:
            found = [speed.get((f"frozen {n}", f"{LINNET} {sparsity}")) for sparsity in sparsities]
            lines.append([f"{LINNET}, inside `frozen`", *(number(value) if value else "–" for value in found), ""])
        what = "forward" if batch == 1 else "forward and backward"
        parts.append(f"## {n} x {n}, batch {batch}: {what}\n\nnn.Linear takes {number(1e3 * base)} ms.\n")
        parts.append(table(["layer", *(f"sparsity {s}" for s in sparsities), ""], lines))
    if memory:
        parts.append("## Memory\n\nGrowth of the resident memory over import at its peak: built, one step with Adam.\n")
        lines = []
        for one in memory:
            key = (one.size, one.connections, one.batch)
            lines.append(
                [
                    f"{one.size:,} x {one.size:,}, {one.connections:,} connections, batch {one.batch}",
                    f"{MEMORY.get(key, 0)} MB",
                    f"{one.megabytes:.0f} MB",
                    f"{one.seconds:.2f} s",
                ]
            )
        parts.append(table(["", "target", "measured", "built in"], lines))
    return "\n".join(parts)
