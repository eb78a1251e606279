"""The operators and modules of PyTorch."""

import copy
import dataclasses
import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FORMS, noisy, rows
from torch import nn

import resblock
import resblock.torch
from resblock.torch import memory, ops


def own(formula, params, x):
    """The same in PyTorch's own operations."""
    params = list(params)
    take = lambda there=True: params.pop(0) if there else None

    def act(activation, z):
        name, value = activation if isinstance(activation, tuple) else (activation, None)
        functions = {
            "identity": lambda z: z,
            "relu": F.relu,
            "gelu": F.gelu,
            "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
            "silu": F.silu,
            "elu": lambda z: F.elu(z, value),
            "leaky_relu": lambda z: F.leaky_relu(z, value),
        }
        return functions[name](z)

    def norm(norm, x):
        if norm is None:
            return x
        gain, shift = take(norm.gain), take(norm.shift)
        if norm.kind == "rms":
            return F.rms_norm(x, x.shape[-1:], gain, norm.epsilon)
        return F.layer_norm(x, x.shape[-1:], gain, shift, norm.epsilon)

    if isinstance(formula, resblock.Linear):
        return act(formula.activation, F.linear(x, take(), take(formula.bias)))
    if isinstance(formula, resblock.NormLayer):
        return act(formula.activation, norm(formula.norm, x))
    maps = [(take(), take(formula.biases)) for _ in range(2 + formula.gated + (formula.skip == "projection"))]
    first, third, second = (maps[0], maps[1] if formula.gated else None, maps[1 + formula.gated])
    n = norm(formula.pre_norm, x)
    h = act(formula.activation, F.linear(n, *first))
    if third:
        h = h * F.linear(n, *third)
    branch = F.linear(h, *second)
    post = formula.post_norm
    if formula.branch_scale.kind != "constant":
        # Of a block with one norm before the branch, the scale is the last vector.
        branch = branch * params.pop()
    skip = {"identity": lambda: x, "none": lambda: 0.0, "projection": lambda: F.linear(x, *maps[-1])}[formula.skip.value]()
    return norm(post, skip + branch)


def whole(formulas, params, x):
    """A chain of them."""
    for formula in formulas:
        count = len(resblock.Function(formula).names)
        x, params = own(formula, params[:count], x), params[count:]
    return x


def leaves(form, *shape):
    function = resblock.Function(form)
    params = [torch.from_numpy(p).requires_grad_() for p in noisy(function)]
    return function, params, torch.from_numpy(rows(*shape)).requires_grad_()


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max().clamp(min=1e-3))), (a - b).abs().max()


def test_gradients_are_those_of_pytorchs_operations_and_bits_those_of_the_core(form):
    function, params, x = leaves(form, 3, 7, 48)
    y = resblock.torch.fused(x, params, form)
    expected = whole(function.formulas, params, x)
    close([y], [expected])
    dy = torch.cos(y).detach()
    found = torch.autograd.grad(y, [x, *params], dy, retain_graph=True)
    close(found, torch.autograd.grad(expected, [x, *params], dy))
    again = torch.autograd.grad(y, [x, *params], dy)
    plain = [p.detach().numpy() for p in params]
    core, record = function.forward(x.detach().numpy(), plain)
    dx, grads = function.backward(dy.numpy(), record, plain)
    assert np.array_equal(core, y.detach().numpy())
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(found, [dx, *grads]))
    assert all(torch.equal(a, b) for a, b in zip(found, again))
    with torch.no_grad():
        for _ in range(3):  # the third is packed
            assert torch.equal(resblock.torch.fused(x, params, form), y)


def test_strided_broadcast_and_shared_tensors(form):
    function, params, x = leaves(form, 48, 7, 3)
    turned = [nn.Parameter(p.detach().t().contiguous()) if p.dim() == 2 else p for p in params]
    views = [t.t() if p.dim() == 2 else t for t, p in zip(turned, params)]
    dense = x.detach().permute(2, 1, 0).contiguous().requires_grad_()
    y, expected = resblock.torch.fused(x.permute(2, 1, 0), views, form), resblock.torch.fused(dense, params, form)
    assert torch.equal(y, expected)
    found = torch.autograd.grad(y.sum() + y.square().sum(), [x, *turned])
    want = torch.autograd.grad(expected.sum() + expected.square().sum(), [dense, *params])
    assert torch.equal(found[0].permute(2, 1, 0), want[0])
    assert all(torch.equal(a.t() if a.dim() == 2 else a, b) for a, b in zip(found[1:], want[1:]))
    row = torch.from_numpy(rows(48)).requires_grad_()
    wide = row.expand(5, 48)
    assert torch.equal(resblock.torch.fused(wide, params, form), resblock.torch.fused(wide.contiguous(), params, form))


@pytest.mark.parametrize("drawn", [False, True])
def test_operators_pass_pytorchs_own_checks(form, drawn):
    _, params, x = leaves(form, 3, 48)
    draw = ops.new_draw() if drawn else None
    formula = ops.describe(form)
    torch.library.opcheck(torch.ops.resblock.forward.default, (x, params, draw, formula, True))
    torch.library.opcheck(torch.ops.resblock.infer.default, (x.detach(), [p.detach() for p in params], formula))
    y, record = torch.ops.resblock.forward(x.detach(), [p.detach() for p in params], draw, formula, True)
    wanted = [True] * len(params)
    torch.library.opcheck(torch.ops.resblock.backward.default, (y, record, [p.detach() for p in params], formula, True, wanted))


def test_gradcheck():
    # In single precision: by a smooth form, wide steps and tolerances.
    form = resblock.BlockForm.gpt2(6, 5)
    function = resblock.Function(form)
    params = [torch.from_numpy(p).requires_grad_() for p in noisy(function)]
    x = torch.from_numpy(rows(3, 6)).requires_grad_()
    call = lambda x, *params: resblock.torch.fused(x, params, form)
    assert torch.autograd.gradcheck(call, (x, *params), eps=1e-2, atol=2e-2, rtol=2e-2, nondet_tol=0.0)


@pytest.mark.parametrize("dynamic", [False, True])
def test_under_compile_without_a_break(form, dynamic):
    module = resblock.torch.Fused(form)
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic)
    for n in [4, 9]:
        x = torch.from_numpy(rows(n, 3, 48)).requires_grad_()
        y, expected = compiled(x), module(x)
        assert torch.equal(y, expected)
        inputs = [x, *module.parameters()]
        found, want = (torch.autograd.grad(out.square().sum(), inputs) for out in (y, expected))
        close(found, want)  # sums of squares are Inductor's, the rest is ours
        with torch.no_grad():
            assert torch.equal(compiled(x), expected)
    torch._dynamo.reset()


def test_only_what_is_wanted_is_made():
    function, params, x = leaves(FORMS["gpt2"], 6, 48)
    for frozen in [[0], [1, 2], [0, 1, 2, 3, 4, 5]]:
        some = [p.detach().requires_grad_(i not in frozen) for i, p in enumerate(params)]
        y = resblock.torch.fused(x, some, FORMS["gpt2"])
        y.sum().backward()
        assert [p.grad is None for p in some] == [i in frozen for i in range(6)]
    y = resblock.torch.fused(x.detach(), params, FORMS["gpt2"])
    assert torch.autograd.grad(y.sum(), params)[0].shape == (80, 48)


def test_a_second_order_is_refused():
    _, params, x = leaves(FORMS["gpt2"], 6, 48)
    y = resblock.torch.fused(x, params, FORMS["gpt2"])
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        dx.sum().backward()


def test_bad_tensors_are_errors_of_pytorchs():
    _, params, x = leaves(FORMS["gpt2"], 6, 48)
    call = lambda x, params=params: resblock.torch.fused(x, params, FORMS["gpt2"])
    bad = [
        (TypeError, "x: expected float32, found bfloat16", lambda: call(x.bfloat16())),
        (TypeError, "x: expected a tensor on the CPU, found one on meta", lambda: call(x.to("meta"))),
        (TypeError, "x: expected a strided", lambda: call(x.detach().to_sparse())),
        (ValueError, "x: expected 48 features", lambda: call(x[:, 1:])),
        (ValueError, "x: expected 48 features", lambda: call(x[0, 0])),
        (TypeError, "first.bias: expected float32", lambda: call(x, [params[0], params[1].double(), *params[2:]])),
        (ValueError, "w1", lambda: call(x, [params[2], *params[1:]])),
        (ValueError, "params: expected 6", lambda: call(x, params[1:])),
    ]
    for kind, text, fails in bad:
        with pytest.raises(kind, match=text):
            fails()
    call(x).sum().backward()


def test_no_rows_and_nan_rows(form):
    _, params, x = leaves(form, 6, 48)
    y = resblock.torch.fused(x[:0], params, form)
    y.sum().backward()
    assert y.shape[0] == 0 and all((p.grad == 0).all() for p in params)
    clean, x = resblock.torch.fused(x, params, form), x.detach().clone()
    x[2, 5] = torch.nan
    y = resblock.torch.fused(x, params, form)
    assert y[2].isnan().any() and torch.equal(y[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]])


def test_weights_that_change_are_seen():
    module, x = resblock.torch.Fused(FORMS["gpt2"]).eval(), torch.from_numpy(rows(6, 48))
    with torch.no_grad():
        before = [module(x) for _ in range(3)]
        module.first.weight.mul_(2)
        after = [module(x) for _ in range(3)]
        assert all(torch.equal(a, after[0]) for a in after) and not torch.equal(before[0], after[0])
        module.first.weight.data.mul_(0.5)  # behind its back
        module.refresh()
        assert all(torch.equal(module(x), before[0]) for _ in range(3))
        module.first.weight.data = module.first.weight.data.clone() * 2
        assert all(torch.equal(module(x), after[0]) for _ in range(3))
    with torch.inference_mode():
        assert all(torch.equal(module(x), after[0]) for _ in range(3))


def test_dropout_is_drawn_by_pytorchs_generator():
    form = dataclasses.replace(FORMS["bert"], dropout=resblock.Dropout(hidden=0.3, branch=0.2, depth=0.1))
    module, x = resblock.torch.Fused(form), torch.from_numpy(rows(64, 48))
    torch.manual_seed(5)
    first, second = module(x), module(x)
    torch.manual_seed(5)
    assert torch.equal(module(x), first) and not torch.equal(first, second)
    module.eval()
    assert torch.equal(module(x), module(x)) and not torch.equal(module(x), first)


@pytest.mark.parametrize("compiled", [False, True])
def test_batch_norm_is_pytorchs(compiled):
    form = resblock.BlockForm.tabular(48, 80)
    module = resblock.torch.Fused(form, names="tabular")
    norm = nn.BatchNorm1d(48)
    state = module.state_dict()
    assert {k.removeprefix("normalization.") for k in state if k.startswith("normalization.")} == set(norm.state_dict())
    run = torch.compile(module, fullgraph=False) if compiled else module
    for seed in range(3):
        x = torch.from_numpy(rows(32, 48, seed=seed))
        y = run(x)
        expected = x + F.linear(F.relu(F.linear(norm(x), module.linear1.weight, module.linear1.bias)), module.linear2.weight, module.linear2.bias)
        close([y], [expected])
        y.sum().backward()
        assert torch.allclose(module.normalization.running_mean, norm.running_mean, atol=1e-6)
        assert torch.allclose(module.normalization.running_var, norm.running_var, atol=1e-5)
        assert module.normalization.num_batches_tracked == norm.num_batches_tracked
    module.eval(), norm.eval()
    expected = x + F.linear(F.relu(F.linear(norm(x), module.linear1.weight, module.linear1.bias)), module.linear2.weight, module.linear2.bias)
    close([module(x)], [expected])
    torch._dynamo.reset()


@pytest.mark.parametrize(("names", "form"), [("gpt2", "gpt2"), ("bert", "bert"), ("llama", "llama"), ("phi3", "llama"), ("timm_vit", "layerscale")])
def test_other_libraries_names_compute_the_same(names, form):
    mine, theirs = resblock.torch.Fused(FORMS[form]), resblock.torch.Fused(FORMS[form], names=names)
    with torch.no_grad():
        for a, b in zip(theirs.parameters_in_order(), mine.parameters_in_order()):
            a.copy_(b)
    x = torch.from_numpy(rows(6, 48))
    assert torch.equal(mine(x), theirs(x))
    assert not set(mine.state_dict()) & set(theirs.state_dict())
    theirs(x).sum().backward()
    assert all(p.grad is not None for p in theirs.parameters())
    copied = copy.deepcopy(theirs)
    with torch.no_grad():
        copied.parameters_in_order()[0].zero_()
    assert not torch.equal(copied(x), theirs(x)) and torch.equal(mine(x), theirs(x))


def test_training_lowers_the_loss_with_pytorchs_optimisers():
    for make in (lambda p: torch.optim.AdamW(p, 1e-2), lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9)):
        torch.manual_seed(0)
        net = nn.Sequential(resblock.torch.Fused([resblock.Linear(8, 32), *[resblock.BlockForm.vit(32, 64)] * 3]), nn.Linear(32, 1))
        adam, x = make(net.parameters()), torch.randn(128, 8)
        target = x[:, :1] * x[:, 1:2]
        losses = []
        for _ in range(60):
            adam.zero_grad()
            loss = F.mse_loss(net(x), target)
            loss.backward()
            adam.step()
            losses.append(loss.item())
        assert losses[-1] < 0.2 * losses[0], losses


def test_memory_is_used_again_but_never_shared():
    form = resblock.BlockForm(256, 256)
    module, x = resblock.torch.Fused(form), torch.randn(256, 256)
    module(x).sum().backward()
    kept = [p.grad for p in module.parameters()]
    before = [g.clone() for g in kept]
    for p in module.parameters():
        p.grad = None
    outputs = [module(x * i) for i in range(1, 30)]
    for i, y in enumerate(outputs, 1):
        assert torch.equal(y, module(x * i))
    sum(y.sum() for y in outputs).backward()
    assert all(torch.equal(a, b) for a, b in zip(kept, before)), "gradients that are still held were written to"
    assert len({y.data_ptr() for y in outputs}) == len(outputs)
    shared = module(x).detach().share_memory_()
    address = shared.data_ptr()
    del shared
    assert all(module(x).data_ptr() != address for _ in range(40)), "another process may have this memory"
    del outputs, y, kept
    for p in module.parameters():
        p.grad = None
    gc.collect()
    memory.MEMORY.release()
    assert memory.MEMORY._count <= 2
