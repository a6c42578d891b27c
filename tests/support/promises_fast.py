"""What the maps with a fast product promise, a second time, on A = Wᵀ."""

import numpy as np

Array = np.ndarray


def beyond_rank_one(blocks: list[Array]) -> float:
    """How far blocks are from rank one, relative to the largest of them: what is left without the cross of its pivot.

    It is the second singular value but for a factor, without the rounding of a decomposition.
    """
    largest, left = 0.0, 0.0
    for block in blocks:
        if block.size and np.abs(block).max() > 0:
            i, j = np.unravel_index(np.abs(block).argmax(), block.shape)
            largest = max(largest, abs(block[i, j]))
            left = max(left, np.abs(block - np.outer(block[:, j], block[i] / block[i, j])).max())
    return float(left / max(largest, 1e-300))


def circulant(a: Array, layer) -> float:
    off = max(np.abs(np.roll(a[i], -i) - a[0]).max() for i in range(len(a)))
    return float(off / max(np.abs(a).max(), 1e-300))


def block_diagonal(a: Array, layer) -> float:
    b = layer.entries.shape[-3]
    outside = a.copy()
    for k in range(b):
        rows = slice(k * a.shape[0] // b, (k + 1) * a.shape[0] // b)
        outside[rows, k * a.shape[1] // b : (k + 1) * a.shape[1] // b] = 0
    return float(np.abs(outside).max() / max(np.abs(a).max(), 1e-300))


def kronecker(a: Array, layer) -> float:
    (o, i), (o2, i2) = layer.first.shape[-2:], layer.second.shape[-2:]
    rows = [a[p * i2 : (p + 1) * i2, q * o2 : (q + 1) * o2].ravel() for p in range(i) for q in range(o)]
    return beyond_rank_one([np.stack(rows)])


def monarch(a: Array, layer) -> float:
    b, p = layer.first.shape[-2:]
    return beyond_rank_one([a[k * p : (k + 1) * p, q::b] for k in range(b) for q in range(b)])


def butterfly(a: Array, layer) -> float:
    """Every entry is a product over the bits; so rank one shows wherever one bit of the input stands alone."""
    w = a.T
    linear = 0.0
    if layer.complex:
        z = (w[::2, ::2] + w[1::2, 1::2]) / 2 + 1j * (w[1::2, ::2] - w[::2, 1::2]) / 2
        back = np.zeros_like(w)
        back[::2, ::2], back[1::2, 1::2], back[1::2, ::2], back[::2, 1::2] = z.real, z.real, z.imag, -z.imag
        linear, w = float(np.abs(w - back).max() / max(np.abs(w).max(), 1e-300)), z
    w = w if layer.increasing_stride else w.T
    outputs, inputs = w.shape
    blocks = []
    for k in range((max(w.shape) - 1).bit_length()):
        low = 2 ** (k + 1)
        if layer.tied_weight:  # row o is a Kronecker product of pairs that outputs of equal lower bits share
            for r in range(low):
                columns = [i for i in range(inputs) if not i & 2**k and i | 2**k < inputs]
                pairs = [[w[o, i], w[o, i | 2**k]] for o in range(r, outputs, low) for i in columns]
                blocks.append(np.array(pairs).reshape(-1, 2))
        else:  # lower bits of the output and higher ones of the input fixed
            blocks += [w[r::low, c : c + low] for r in range(min(low, outputs)) for c in range(0, inputs, low)]
    return max(linear, beyond_rank_one(blocks))


PROMISES_FAST = {
    "BlockDiagonalLinear": block_diagonal,
    "ButterflyLinear": butterfly,
    "CirculantLinear": circulant,
    "KroneckerLinear": kronecker,
    "MonarchLinear": monarch,
}
