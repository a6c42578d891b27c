"""Which implementation of a product runs, and on how many samples at a time: one function that all callers ask.

The choice is a pure function of device, dtype, sizes and the instructions of the CPU, never of a live timing: a program
computes the same bits in every run, and what it will do can be read here. The thresholds were measured, with one
thread, on x86 (benchmarks/sparse.md).
"""

from enum import Enum
from typing import NamedTuple

import torch

CAPABILITY = torch.backends.cpu.get_cpu_capability()
"""The vector instructions that torch uses: ``"AVX2"``, ``"AVX512"``, ``"DEFAULT"``, on ARM ``"SVE256"``."""
TILE = 2**16
"""Numbers that stay in the second-level cache, and entries below which a product is mostly the overhead of its call."""
LARGEST_COPY = 2**25
"""Entries up to which a dense copy of W may exist, over all maps: 128 MB in float32."""
CACHED_COPY = 2**21
"""Entries up to which a dense copy of W stays in the cache: 8 MB in float32."""


class Operation(Enum):
    """What is to be computed with W, (rows, columns), which has nnz entries."""

    PRODUCT = "y = x Wᵀ; the gradient g W is the same with W transposed"
    FROZEN_PRODUCT = "y = x Wᵀ inside linnet.frozen, where a dense copy of W may be kept"
    SAMPLED_PRODUCT = "the entries of gᵀ x at the connections, which is the gradient of the values"


class Kernel(Enum):
    """The implementations."""

    NOTHING = "there is no sample"
    DENSE = "torch's dense product with a copy of W"
    CSR_VECTOR = "torch.mv with W as a CSR tensor: one sample"
    EMBEDDING_BAG = "torch.embedding_bag: sums of weighted rows, samples as columns"
    CSR_COLUMNS = "torch.addmm with W as a CSR tensor, samples as columns"
    SAMPLED = "torch.sparse.sampled_addmm, samples as columns"

    @property
    def by_columns(self) -> bool:
        """Whether a product takes its samples as columns, some at a time."""
        return self in (Kernel.EMBEDDING_BAG, Kernel.CSR_COLUMNS)


class Choice(NamedTuple):
    """An implementation, and how many samples it takes at a time; 0: all of them."""

    kernel: Kernel
    samples: int


NOTHING, DENSE, VECTOR = Choice(Kernel.NOTHING, 0), Choice(Kernel.DENSE, 0), Choice(Kernel.CSR_VECTOR, 1)


def choose_kernel(
    operation: Operation,
    rows: int,
    columns: int,
    nnz: int,
    batch: int,
    *,
    maps: int = 1,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    capability: str = CAPABILITY,
) -> Choice:
    """The implementation for one matrix: forward, backward, one sample and ``frozen`` all ask here.

    Args:
        operation: what is to be computed.
        rows, columns: the sizes of W; of several maps in one block-diagonal matrix those of this matrix.
        nnz: its entries.
        batch: the number of samples.
        maps: how many matrices of this size the layer has; only a dense copy depends on it.
        device: the type of the device.
        dtype: of the values.
        capability: the vector instructions of the CPU.

    Example:
        >>> choice = choose_kernel(Operation.PRODUCT, 1024, 1024, 100_000, batch=64, capability="AVX2")
        >>> choice.kernel.name, choice.samples
        ('EMBEDDING_BAG', 64)
        >>> choose_kernel(Operation.PRODUCT, 1024, 1024, 100_000, batch=1).kernel.name
        'CSR_VECTOR'
    """
    if batch == 0:
        return NOTHING
    if operation is Operation.FROZEN_PRODUCT:
        size = rows * columns
        # Of few samples W is read once and used little: memory decides, and as long as the copy stays in the cache a
        # density of 0.1 is enough. Of many samples arithmetic decides: 80 to 90 GFLOP/s beside the 14 to 44 of below.
        least = (0.1 if batch <= 4 else 0.25) if size <= CACHED_COPY else 0.35
        if nnz > least * size and size * maps <= LARGEST_COPY:
            return DENSE
    units = max(rows, columns)
    if operation is Operation.SAMPLED_PRODUCT:
        return Choice(Kernel.SAMPLED, 1 if batch == 1 else samples_at_a_time(nnz, units, 64))
    if batch == 1:
        return VECTOR
    # FBGEMM, which torch has on x86 for float32 alone, adds up weighted rows in registers: 29 to 44 GFLOP/s on one
    # core, where MKL's CSR product has 14 to 19. A row of 8 samples costs it as much as one of 32: there MKL is faster.
    fbgemm = device == "cpu" and dtype == torch.float32 and capability.startswith("AVX")
    if fbgemm:  # it reads rows of x at random: `columns` rows of 64 floats should stay in the cache
        samples = samples_at_a_time(nnz, units, 64 if columns <= 2048 else 32)
    else:
        samples = samples_at_a_time(nnz, units, 32 if units <= 2048 else 16)
    return Choice(Kernel.EMBEDDING_BAG if fbgemm and samples > 8 else Kernel.CSR_COLUMNS, samples)


def samples_at_a_time(nnz: int, units: int, best: int) -> int:
    """How many samples a product takes at a time: ``best``, or more where a product is little more than a call."""
    # With nnz connections a sample costs nnz multiplications; 2²¹ of them outweigh the call. Above 2²² numbers of input
    # or output it is fewer, so that memory stays small; always a multiple of 8, for which the kernels are fast.
    wanted = max(best, min(256, 2**21 // max(nnz, 1)))
    return max(min(wanted, 2**22 // units) // 8 * 8, 8)


def maps_at_a_time(rows: int, columns: int, nnz: int) -> int:
    """How many maps of a population make up one block-diagonal matrix: as many as a product is worth its call for."""
    return max(1, TILE // max(nnz, rows + 1, columns))
