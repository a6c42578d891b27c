"""The constructors that the page of neuromancer.slim.linear lists, and what it calls their bases."""

# The page's constructors, and what it calls "Bases".
PAGE = {
    "BoundedNormLinear": ("insize, outsize, bias=False, sigma_min=0.1, sigma_max=1.0, p=2, **kwargs", "Linear"),
    "ButterflyLinear": (
        "insize, outsize, bias=False, complex=False, tied_weight=True, increasing_stride=True, ortho_init=False, "
        "**kwargs",
        "LinearBase",
    ),
    "DampedSkewSymmetricLinear": (
        "insize, outsize, bias=False, sigma_min=0.1, sigma_max=0.5, **kwargs",
        "SkewSymmetricLinear",
    ),
    "GershgorinLinear": (
        "insize, outsize, bias=False, sigma_min=0.0, sigma_max=1.0, real=True, **kwargs",
        "SquareLinear",
    ),
    "IdentityInitLinear": ("insize, outsize, bias=False, **kwargs", "Linear"),
    "IdentityLinear": ("insize, outsize, bias=False, **kwargs", "IdentityInitLinear"),
    "L0Linear": (
        "insize, outsize, bias=True, weight_decay=1.0, droprate_init=0.5, temperature=0.6666666666666666, lamda=1.0",
        "LinearBase",
    ),
    "LassoLinear": ("insize, outsize, bias=False, gamma=1.0, **kwargs", "LinearBase"),
    "LassoLinearRELU": ("insize, outsize, bias=False, gamma=1.0, **kwargs", "LinearBase"),
    "LeftStochasticLinear": ("insize, outsize, bias=False, **kwargs", "LinearBase"),
    "Linear": ("insize, outsize, bias=False, **kwargs", "LinearBase"),
    "NonNegativeLinear": ("insize, outsize, bias=False, **kwargs", "LinearBase"),
    "OrthogonalLinear": ("insize, outsize, bias=False, **kwargs", "SquareLinear"),
    "PSDLinear": ("insize, outsize, bias=False, **kwargs", "SquareLinear"),
    "PerronFrobeniusLinear": ("insize, outsize, bias=False, sigma_min=0.8, sigma_max=1.0, **kwargs", "LinearBase"),
    "PowerBoundLinear": ("insize, outsize, max_p=1, pwr_iters=200, bias=False, **kwargs", "LinearBase"),
    "RightStochasticLinear": ("insize, outsize, bias=False, **kwargs", "LinearBase"),
    "SVDLinear": ("insize, outsize, bias=False, sigma_min=0.1, sigma_max=1.0, **kwargs", "LinearBase"),
    "SVDLinearLearnBounds": ("insize, outsize, bias=False, sigma_min=0.1, sigma_max=1.0, **kwargs", "SVDLinear"),
    "SchurDecompositionLinear": ("insize, outsize, bias=False, l2=0.01, **kwargs", "SquareLinear"),
    "SkewSymmetricLinear": ("insize, outsize, bias=False, **kwargs", "SquareLinear"),
    "SpectralLinear": (
        "insize, outsize, bias=False, n_U_reflectors=None, n_V_reflectors=None, sigma_min=0.1, sigma_max=1.0, **kwargs",
        "LinearBase",
    ),
    "SplitLinear": ("insize, outsize, bias=False, **kwargs", "LinearBase"),
    "StableSplitLinear": ("insize, outsize, bias=False, sigma_min=0.1, sigma_max=1.0, **kwargs", "LinearBase"),
    "SymmetricLinear": ("insize, outsize, bias=False, **kwargs", "SquareLinear"),
    "SymmetricSVDLinear": ("insize, outsize, bias=False, sigma_min=0.1, sigma_max=1.0, **kwargs", "SVDLinear"),
    "SymmetricSpectralLinear": (
        "insize, outsize, bias=False, n_reflectors=None, sigma_min=0.1, sigma_max=1.0, **kwargs",
        "SpectralLinear",
    ),
    "SymplecticLinear": ("insize, outsize, bias=False, **kwargs", "LinearBase"),
    "TrivialNullSpaceLinear": ("insize, outsize, bias=False, rank=None, epsilon=0.1, **kwargs", "LinearBase"),
}


def as_page(signature):
    return [(p.name, p.kind, p.default) for p in signature.parameters.values() if p.name != "self"]
