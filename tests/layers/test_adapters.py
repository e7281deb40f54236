"""Modules are modules: adapters, hooks and replaced layers are honoured by every attention, or refused by name."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from accuracy import IMPLEMENTATIONS, draw_parameters
from perceivers import Perceiver, PerceiverIO, inputs, outputs
from perceivers.layers import CrossAttention, Pooler, Resampler, SelfAttention
from perceivers.layers.norm import RMSNorm
from perceivers.ops.tokens import Positions, Tokens

OPAQUE = ("reference", "dense")  # implementations that call opaque projections
TARGETS = ["to_q", "to_k", "to_v", "to_out"]


def perceiver():
    return Perceiver(
        data_shape=[3, 12, 10],
        num_bands=2,
        num_classes=5,
        num_latent_tokens=7,
        dim=16,
        heads=2,
        layers_indice=[0, 1, 1],
        num_latent_transformers_in_layers=[1, 1],
    )


def perceiver_io():
    """Its decoder computes encoded queries without projecting them."""
    return PerceiverIO(
        inputs=inputs.Pixels(data_shape=[3, 12, 10], num_bands=2),
        outputs=outputs.Grid(axes=[40, 30], num_channels=3, num_bands=8),
        num_latent_tokens=64,
        dim=16,
        heads=2,
        decoder_qk_channels=512,
    )


class Attention(nn.Module):
    """A self-attention by itself: peft adapts what has a parent."""

    def __init__(self):
        super().__init__()
        self.attention = SelfAttention(dim=16, heads=2)

    def forward(self, x):
        return self.attention(x)


MODELS = {
    "Perceiver": (perceiver, (3, 12, 10)),
    "PerceiverIO": (perceiver_io, (3, 12, 10)),
    "Resampler": (lambda: Resampler(dim=16, kv_dim=12, num_latent_tokens=5, depth=2, heads=4, kv_heads=2), (11, 12)),
    "Resampler, qk_norm": (lambda: Resampler(dim=16, num_latent_tokens=5, depth=2, heads=4, qk_norm=True), (11, 16)),
    "Pooler": (lambda: Pooler(dim=16, kv_dim=12, heads=4, query_residual=True), (11, 12)),
    "SelfAttention": (Attention, (11, 16)),
}
each_model = pytest.mark.parametrize("name", MODELS)


def made(name) -> tuple[nn.Module, torch.Tensor]:
    make, shape = MODELS[name]
    return draw_parameters(make().double().eval()), torch.randn(2, *shape, dtype=torch.float64)


def adapted(peft, model, **config):
    """The model with random LoRA adapters on all its attentions."""
    config = peft.LoraConfig(**{"r": 3, "target_modules": TARGETS, "lora_dropout": 0.0, **config})
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return model


def select(model, implementation) -> None:
    for module in model.modules():
        if hasattr(module, "attention_implementation"):
            module.attention_implementation = implementation


def close(ours, wanted) -> None:
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


def refuses(name: str, implementation: str) -> bool:
    return "qk_norm" in name and implementation not in (*OPAQUE, "auto")


@pytest.mark.peer("peft")
@each_model
@pytest.mark.parametrize("use_dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("implementation", ["auto", *IMPLEMENTATIONS])
def test_adapters_are_honoured(peer, name, use_dora, implementation):
    """Unmerged, merged and disabled give what a plain model with these weights gives, and gradients reach the adapters."""
    if refuses(name, implementation):
        pytest.skip("normalised keys have to be made")
    plain, x = made(name)
    before = plain(x).detach()
    model = adapted(peer, copy.deepcopy(plain), use_dora=use_dora)
    select(model, implementation)
    out = model(x)
    assert (out - before).abs().max() > 1e-2 * before.abs().max()
    out.square().sum().backward()
    wanted_grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    for parameter_name, grad in wanted_grads.items():
        assert grad is not None, parameter_name
        assert grad.abs().max() > 0, parameter_name
    select(model, "reference")
    model.zero_grad()
    model(x).square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = parameter.grad.abs().max()
            torch.testing.assert_close(wanted_grads[parameter_name], parameter.grad, rtol=1e-6, atol=1e-8 * scale + 1e-9)
    select(model, implementation)
    with model.disable_adapter():
        close(model(x), before)
    model.merge_adapter()
    close(model(x), out)
    with model.disable_adapter():  # takes the merged weights out again, when a module is called
        close(model(x), before)
        close(model(x), before)
    merged = copy.deepcopy(model).merge_and_unload()
    close(merged(x), out)


@pytest.mark.peer("peft")
def test_adapters_by_the_operation_alone(peer):
    """Encoded queries are computed from the weights of adapters, too."""
    model, x = made("PerceiverIO")
    model = adapted(peer, model)
    decoder = model.base_model.model.decoder.attention
    out = model(x)
    decoder.set_attention_implementation("encoded_queries")
    close(model(x), out)
    decoder.to_q.lora_dropout["default"] = nn.Dropout(0.5)
    decoder.train()
    with pytest.raises(ValueError, match="implementation='encoded_queries' cannot do this: to_q has an adapter with dropout"):
        model(x)


@pytest.mark.peer("peft")
@each_model
def test_dropout_of_adapters(peer, name):
    """Active, it drops the inputs of the adapter: the fast implementations refuse; inactive, it is nothing."""
    plain, x = made(name)
    model = adapted(peer, plain, lora_dropout=0.5).eval()
    close(model(x), model(x))
    model.train()
    assert (model(x) - model(x)).abs().max() > 1e-3
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    if name != "SelfAttention":
        select(model, "absorbed")
        reason = "qk_norm normalises keys" if "qk_norm" in name else "to_k has an adapter with dropout"
        with pytest.raises(ValueError, match=f"implementation='absorbed' cannot do this: {reason}"):
            model(x)


@pytest.mark.peer("peft")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_two_adapters(peer, implementation):
    plain, x = made("Perceiver")
    model = adapted(peer, plain)
    model.add_adapter("other", peer.LoraConfig(r=2, target_modules=TARGETS))
    model.double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".other." in name:
                parameter.normal_(std=0.3)
    outs = []
    for names in (["default"], ["other"], ["default", "other"]):
        model.base_model.set_adapter(names)
        merged = copy.deepcopy(model)
        merged.merge_adapter(names)
        outs.append(merged.unload()(x))
        select(model, implementation)
        close(model(x), outs[-1])
    assert all((a - b).abs().max() > 1e-2 for a, b in zip(outs, [*outs[1:], outs[0]], strict=True))


@pytest.mark.peer("peft")
def test_adapters_of_other_kinds_are_called(peer):
    """LoHa, IA3 and the like have no known weight here: they are honoured by the implementations that call modules."""
    for config in (
        peer.LoHaConfig(r=2, target_modules=TARGETS),
        peer.IA3Config(target_modules=TARGETS, feedforward_modules=[]),
    ):
        plain, x = made("Perceiver")
        before = plain(x).detach()
        model = peer.get_peft_model(plain, config).double()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.uniform_(0.5, 1.5)
        assert (model(x) - before).abs().max() > 1e-2
        select(model, "separable")
        with pytest.raises(ValueError, match=re.escape("implementation='separable' cannot do this: to_k is a peft.tuners.")):
            model(x)


# What can be done to a module without peft.


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def replace_by_a_class(attention, name):
    linear = getattr(attention, name)
    mine = Doubled(linear.in_features, linear.out_features).double()
    mine.load_state_dict(linear.state_dict())
    setattr(attention, name, mine)


def add_hook(attention, name):
    getattr(attention, name).register_forward_hook(lambda module, arguments, out: 2 * out)


def add_pre_hook(attention, name):
    getattr(attention, name).register_forward_pre_hook(lambda module, arguments: (2 * arguments[0],))


def patch_forward(attention, name):
    module = getattr(attention, name)
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)


def add_weight_norm(attention, name):
    module = nn.utils.weight_norm(getattr(attention, name))
    with torch.no_grad():
        module.weight_g.mul_(2)


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def add_parametrization(attention, name):
    parametrize.register_parametrization(getattr(attention, name), "weight", Twice())


CHANGES = {
    "class": (replace_by_a_class, "to_k is a Doubled"),
    "hook": (add_hook, "to_k is a Linear with hooks"),
    "pre-hook": (add_pre_hook, "to_k is a Linear with hooks"),
    "patched forward": (patch_forward, "to_k is a Linear with its forward replaced"),
    "weight_norm": (add_weight_norm, "to_k is a Linear with hooks"),
    "parametrization": (add_parametrization, None),
}


def sizes(implementation="auto"):
    torch.manual_seed(0)
    attention = draw_parameters(CrossAttention(dim=12, kv_dim=9, heads=2, qk_channels=8, v_channels=6)).double()
    attention.set_attention_implementation(implementation)
    content = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    tables = [torch.randn(n, 3, dtype=torch.float64) for n in (5, 4)]
    return attention, torch.randn(2, 7, 12, dtype=torch.float64), [Tokens(content, Positions(tables))]


def by_hand(attention, latents, groups):
    """The definition, by calling every module on the real normalised inputs."""
    x = attention.inputs_norm(torch.cat([group.encoded() for group in groups], dim=1))
    q, k, v = (
        to(a).unflatten(-1, (2, -1)).transpose(1, 2)
        for to, a in ((attention.to_q, latents), (attention.to_k, x), (attention.to_v, x))
    )
    out = (attention.scale * q @ k.mT).softmax(-1) @ v
    return attention.to_out(out.transpose(1, 2).flatten(-2))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("where", TARGETS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("implementation", ["auto", *IMPLEMENTATIONS])
def test_changed_modules_are_honoured_or_refused(implementation, change, where):
    attention, latents, groups = sizes(implementation)
    before = attention(latents, groups)
    function, reason = CHANGES[change]
    function(attention, where)
    wanted = by_hand(attention, latents, groups)
    assert (wanted - before).abs().max() > 1e-2
    refused = reason is not None and where in ("to_k", "to_v") and implementation in ("absorbed", "separable")
    if refused:
        message = f"implementation='{implementation}' cannot do this: {reason.replace('to_k', where)}; use 'auto'"
        with pytest.raises(ValueError, match=re.escape(message)):
            attention(latents, groups)
    else:
        close(attention(latents, groups), wanted)
    if where in ("to_k", "to_v"):
        k_changed = attention.attention_maps(latents, groups)
        x = attention.inputs_norm(groups[0].encoded())
        q, k = (to(a).unflatten(-1, (2, -1)).transpose(1, 2) for to, a in ((attention.to_q, latents), (attention.to_k, x)))
        close(k_changed, (attention.scale * q @ k.mT).softmax(-1))
        assert ("refuses: " + str(reason).replace("to_k", where) in attention.explain(latents, groups)) == (reason is not None)


@pytest.mark.parametrize("change", ["hook", "class", "RMSNorm"])
@pytest.mark.parametrize("implementation", ["auto", *IMPLEMENTATIONS])
def test_norms_are_modules_too(implementation, change):
    attention, latents, groups = sizes(implementation)
    before = attention(latents, groups)
    match change:
        case "hook":
            attention.inputs_norm.register_forward_hook(lambda module, arguments, out: out.square())
            reason = "inputs_norm is a LayerNorm with hooks"
        case "class":
            attention.inputs_norm = nn.Sequential(attention.inputs_norm, nn.Tanh())
            reason = "inputs_norm is a Sequential"
        case _:
            attention.inputs_norm, reason = draw_parameters(RMSNorm(9).double()), None
    wanted = by_hand(attention, latents, groups)
    assert (wanted - before).abs().max() > 1e-3
    if reason and implementation in ("absorbed", "separable"):
        with pytest.raises(ValueError, match=f"implementation='{implementation}' cannot do this: {reason}; use 'auto'"):
            attention(latents, groups)
    else:
        close(attention(latents, groups), wanted)


@pytest.mark.parametrize("where", ["to_q", "query_norm"])
def test_encoded_queries_call_what_they_do_not_know(where):
    torch.manual_seed(0)
    attention = draw_parameters(CrossAttention(dim=9, kv_dim=12, heads=2, qk_channels=8)).double()
    norm = draw_parameters(nn.LayerNorm(9).double())
    tables = [torch.randn(n, 3, dtype=torch.float64) for n in (5, 4)]
    queries = Tokens(torch.randn(2, 3, 5, 4, dtype=torch.float64), Positions(tables))
    latents = [Tokens.of(torch.randn(2, 7, 12, dtype=torch.float64))]
    attention.set_attention_implementation("encoded_queries")
    close(attention(queries, latents, query_norm=norm), by_hand(attention, norm(queries.encoded()), latents))
    (norm if where == "query_norm" else attention.to_q).register_forward_hook(lambda module, arguments, out: out.square())
    reason = "the norm of the queries is a LayerNorm with hooks" if where == "query_norm" else "to_q is a Linear with hooks"
    with pytest.raises(ValueError, match=f"implementation='encoded_queries' cannot do this: {reason}; use 'auto'"):
        attention(queries, latents, query_norm=norm)
    attention.set_attention_implementation("auto")
    close(attention(queries, latents, query_norm=norm), by_hand(attention, norm(queries.encoded()), latents))


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions:UserWarning")
def test_quantised_layers_are_called():
    attention, latents, groups = sizes()
    attention, latents, groups = attention.float(), latents.float(), [Tokens.of(groups[0].encoded().float())]
    wanted = attention(latents, groups)
    for name in ("to_k", "to_v"):
        linear = getattr(attention, name)
        quantised = torch.ao.nn.quantized.dynamic.Linear(linear.in_features, linear.out_features)
        weight = torch.quantize_per_tensor(linear.weight.detach(), 0.02, 0, torch.qint8)
        quantised.set_weight_bias(weight, linear.bias.detach())
        setattr(attention, name, quantised)
    assert (attention(latents, groups) - wanted).abs().max() < 0.1 * wanted.abs().max()
    attention.set_attention_implementation("absorbed")
    message = "implementation='absorbed' cannot do this: to_k is a torch.ao.nn.quantized.dynamic"
    with pytest.raises(ValueError, match=re.escape(message)):
        attention(latents, groups)
