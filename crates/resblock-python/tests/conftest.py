"""Forms that the tests go through, and their parameters."""

import dataclasses

import numpy as np
import pytest

import resblock

FORMS = {
    "relu": resblock.BlockForm(48, 80, activation="relu"),
    "gpt2": resblock.BlockForm.gpt2(48, 80),
    "bert": resblock.BlockForm.bert(48, 80),
    "llama": resblock.BlockForm.llama(48, 80),
    "layerscale": resblock.BlockForm.named("cait", 48, 80),
    "projection": dataclasses.replace(resblock.BlockForm.vit(48, 80), outputs=33, skip=resblock.Skip.PROJECTION),
    "no skip": dataclasses.replace(resblock.BlockForm.t5(48, 80), skip=resblock.Skip.NONE, activation=("elu", 0.7)),
    "linear": resblock.Linear(48, 20, activation=("leaky_relu", 0.1)),
    "norm": resblock.NormLayer(48, resblock.Norm.rms(1e-6)),
    "chain": (resblock.Linear(48, 32), resblock.BlockForm.gpt2(32, 40), resblock.NormLayer(32, resblock.Norm.layer())),
}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def noisy(function, seed=1):
    """Parameters none of which is as it begins."""
    rng = np.random.default_rng(seed)
    return [(p + 0.2 * rng.normal(size=p.shape)).astype(np.float32) for p in function.init(seed)]


def rows(*shape, seed=2):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
