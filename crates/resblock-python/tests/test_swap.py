"""Models of Hugging Face's and timm's, from their configurations, with fused blocks in them."""

import copy

import pytest
import torch

import resblock.torch

transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")


def tokens(model):
    return {"input_ids": torch.arange(60).reshape(3, 20) * 7 % 97}


def bert():
    config = transformers.BertConfig(
        vocab_size=97, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=160, max_position_embeddings=40
    )
    return transformers.BertModel(config)


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=97, n_positions=40, n_embd=64, n_layer=3, n_head=4))


def llama():
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=160
    )
    return transformers.LlamaForCausalLM(config)


def vit():
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=4, num_classes=10, init_values=0.1, drop_path_rate=0.1
    )


MODELS = {"bert": (bert, 3), "gpt2": (gpt2, 3), "llama": (llama, 3), "vit": (vit, 3)}


def output(model):
    if type(model).__name__ == "VisionTransformer":
        return model(torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32))
    found = model(**tokens(model))
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


@pytest.fixture(params=MODELS)
def pair(request):
    torch.manual_seed(0)
    make, layers = MODELS[request.param]
    model = make().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    swapped = copy.deepcopy(model)
    done = resblock.torch.swap(swapped)
    assert len(done.replaced) == layers and not done.kept
    return model, swapped


def gradients(model):
    model.zero_grad()
    found = output(model)
    (found * torch.cos(torch.arange(found.numel()).reshape(found.shape))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_outputs_and_gradients_are_the_same(pair):
    model, swapped = pair
    a, b = output(model), output(swapped)
    assert (a - b).abs().max() < 1e-5 * max(1.0, float(a.abs().max()))
    with torch.no_grad():
        for _ in range(3):
            assert (output(model) - output(swapped)).abs().max() < 1e-5 * max(1.0, float(a.abs().max()))
    mine, theirs = gradients(swapped), gradients(model)
    assert mine.keys() == theirs.keys()
    for name, grad in theirs.items():
        assert (mine[name] - grad).abs().max() <= 1e-5 * max(1.0, float(grad.abs().max())), name


def test_names_are_the_same_and_unswap_puts_back(pair):
    model, swapped = pair
    assert list(model.state_dict()) == list(swapped.state_dict()) or set(model.state_dict()) == set(swapped.state_dict())
    swapped.load_state_dict(model.state_dict())
    assert resblock.torch.swap(swapped).replaced == [] and resblock.torch.unswap(swapped) == 3
    assert [type(m) for m in swapped.modules()] == [type(m) for m in model.modules()]
    assert torch.equal(output(model), output(swapped))


def test_dropout_goes_on(pair):
    model, swapped = pair
    swapped.train()
    torch.manual_seed(1)
    first = output(swapped)
    torch.manual_seed(1)
    assert torch.equal(first, output(swapped))
    swapped.eval()
    assert torch.equal(output(swapped), output(swapped))
    resblock.torch.unswap(swapped.train())
    assert all(m.training for m in swapped.modules())


def test_what_kernels_cannot_read_goes_the_old_way(pair):
    model, swapped = pair
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(output(model), output(swapped))
    assert torch.equal(output(model.bfloat16()), output(swapped.bfloat16())) if type(model).__name__ != "VisionTransformer" else True


def test_a_copy_has_parameters_of_its_own(pair):
    _, swapped = pair
    before = output(swapped)
    other = copy.deepcopy(swapped)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert torch.equal(output(swapped), before) and not torch.equal(output(other), before)


def test_hooks_are_still_called(pair):
    _, swapped = pair
    seen = []
    name = next(n for n, m in swapped.named_modules() if isinstance(m, torch.nn.Linear) and ("mlp" in n or "intermediate" in n) or n.endswith("mlp.c_fc"))
    swapped.get_submodule(name).register_forward_hook(lambda *_: seen.append(1))
    output(swapped)
    assert seen == [1]


def test_under_compile(pair):
    _, swapped = pair
    expected = output(swapped)
    compiled = torch.compile(swapped)
    assert (output_of(compiled, swapped) - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    torch._dynamo.reset()


def output_of(call, model):
    if type(model).__name__ == "VisionTransformer":
        return call(torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32))
    found = call(**tokens(model))
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def test_what_is_not_known_is_left_with_a_reason():
    config = transformers.GPT2Config(vocab_size=97, n_positions=40, n_embd=64, n_layer=2, n_head=4, activation_function="gelu_10")
    done = resblock.torch.swap(transformers.GPT2Model(config))
    assert not done.replaced and all("ClippedGELU" in reason for reason in done.kept.values()) and len(done.kept) == 2
