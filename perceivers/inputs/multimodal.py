"""Several modalities in one model (Perceiver IO, section 4.3; Perceiver, section 4.2).

Each modality keeps its own token groups. Learned padding after their channels brings all of them to the same width and
identifies the modality; it is stored as the constant of a group, so nothing is copied.

Letters: B batch, M inputs, C channels of an encoded input, A axes, n_a rows of table a.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers._checks import an_int, one_of
from perceivers._registry import describe
from perceivers.inputs.base import InputModule, Located
from perceivers.inputs.ragged import index_of
from perceivers.ops.tokens import Positions, Tokens


class Multimodal(InputModule):
    """A dict of input modules, whose inputs share one softmax.

    ```python
    inputs = Multimodal(modalities={"audio": Waveform(num_samples=30_720), "label": Labels(num_classes=700)})
    tokens = inputs({"audio": audio, "label": classes}, mask={"label": has_label})
    ```

    Args:
        modalities: An input module or its description, such as `{"kind": "Labels", "num_classes": 700}`, for each name.
        min_padding_size: Minimum width of the learned padding. The common width is that of the widest modality plus this: 2
            by default in DeepMind's code, 4 in the published autoencoder.
        order: Order of the modalities, "sorted" by name, as published, or as "given".
        mask_probs: Probability, for some names, that an input is replaced by the modality's learned mask token.
        mask_when: "always" masks in training and evaluation, like the published code, which hides the label at test time with
            probability 1; or "training".
        drop_probs: Probability, for some names, that an input is dropped in training; the AudioSet models drop 30% of the
            video.
        drop_modality_probs: Probability, for some names, that all inputs of the modality are dropped from a sample in
            training. A sample that would lose every modality keeps all of them.

    Raises:
        ValueError: If a name is invalid or an argument is out of range.
    """

    def __init__(
        self,
        *,
        modalities: Mapping[str, InputModule | Mapping[str, Any]],
        min_padding_size: int = 2,
        order: str = "sorted",
        mask_probs: Mapping[str, float] | None = None,
        mask_when: str = "always",
        drop_probs: Mapping[str, float] | None = None,
        drop_modality_probs: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(modalities, Mapping) or not modalities:
            raise ValueError(f"modalities={modalities!r} must be a dict with at least one name and input module")
        for name in modalities:
            if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
                raise ValueError(
                    f"modalities has the name {name!r}: names must be strings without dots, not names of dict methods"
                )
        one_of("order", order, ("sorted", "given"))
        self.names = sorted(modalities) if order == "sorted" else list(modalities)
        parts = {name: InputModule.create(modalities[name]) for name in self.names}
        for name, part in parts.items():
            if not isinstance(part, InputModule):
                raise ValueError(
                    f"modality {name!r} is a {type(part).__name__}, not an input module: derive it from"
                    " perceivers.inputs.InputModule"
                )
        self.modalities = nn.ModuleDict(parts)
        widths = {name: self.module(name).num_channels for name in self.names}
        self.num_channels = max(widths.values()) + an_int("min_padding_size", min_padding_size, 0)
        self.mask_probs = self._probabilities("mask_probs", mask_probs)
        self.mask_when = one_of("mask_when", mask_when, ("always", "training"))
        self.drop_probs = self._probabilities("drop_probs", drop_probs)
        self.drop_modality_probs = self._probabilities("drop_modality_probs", drop_modality_probs)
        self.padding = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(self.num_channels - width)) for name, width in widths.items()}
        )
        self.mask_tokens = nn.ParameterDict({name: nn.Parameter(torch.empty(self.num_channels)) for name in self.mask_probs})
        self.config: dict[str, Any] = {
            "modalities": {name: describe(self.modalities[name]) for name in self.names},
            "min_padding_size": min_padding_size,
            "order": order,
            "mask_probs": self.mask_probs,
            "mask_when": mask_when,
            "drop_probs": self.drop_probs,
            "drop_modality_probs": self.drop_modality_probs,
        }
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialise padding and mask tokens from a normal distribution (std 0.02) truncated to [-0.04, 0.04].

        Source: DeepMind's released code.
        """
        for vector in [*self.padding.values(), *self.mask_tokens.values()]:
            if vector.numel() > 0:  # the widest modality may need no padding
                nn.init.trunc_normal_(vector, std=0.02, a=-0.04, b=0.04)

    def module(self, name: str) -> InputModule:
        """Return the input module of a modality."""
        module = self.modalities[name]
        assert isinstance(module, InputModule)
        return module

    def forward(self, x: Mapping[str, Any], mask: Mapping[str, Any] | None = None) -> list[Tokens]:
        """Return the token groups of all modalities, in order.

        Args:
            x: For each name, the data of its input module.
            mask: For some names, a mask, bool: either the mask of the input module, or `[B]`, True for samples that have the
                modality. Samples without it still need values of the right shape, such as zeros.

        Raises:
            ValueError: If names do not fit, batch sizes differ, or an input module rejects its data.
        """
        groups = self.by_modality(x, mask)
        return [group for name in self.names for group in groups[name]]

    def by_modality(self, x: Mapping[str, Any], mask: Mapping[str, Any] | None = None) -> dict[str, list[Tokens]]:
        """Return the token groups that `forward` returns, by the name of their modality."""
        mask = {} if mask is None else mask
        for argument, given in (("x", x), ("mask", mask)):
            if not isinstance(given, Mapping):
                raise ValueError(f"{argument} is a {type(given).__name__}, not a dict with the modalities {self.names}")
            if unknown := [name for name in given if name not in self.names]:
                raise ValueError(f"{argument} has the unknown modalities {unknown}: names are {self.names}")
        if missing := [name for name in self.names if name not in x]:
            raise ValueError(
                f"x lacks the modalities {missing}: give all of {self.names}; for samples without a modality, give zeros and"
                " mask={name: tensor of False, [B]}"
            )
        groups = {name: self._encode(name, x[name], mask.get(name)) for name in self.names}
        sizes = {name: some[0].content.shape[0] for name, some in groups.items()}
        if any(size != sizes[self.names[0]] for size in sizes.values()):
            raise ValueError(f"x has different batch sizes, {sizes}: they must be equal")
        return self._drop_modalities(groups) if self.training and self.drop_modality_probs else groups

    def example(self, batch_size: int = 1) -> dict[str, Any] | None:
        """Return the example of each modality by name, or `None` if a modality has none."""
        examples = {name: self.module(name).example(batch_size) for name in self.names}
        return None if any(example is None for example in examples.values()) else examples

    def _encode(self, name: str, x: Any, mask: Any) -> list[Tokens]:
        whole = mask if isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.ndim == 1 else None
        groups = self.module(name)(x, mask) if whole is None else self.module(name)(_clear(x, whole))
        if whole is not None:
            groups = [restrict(group, whole) for group in groups]
        groups = [self._pad(group, self.padding[name]) for group in groups]
        if name in self.mask_probs and (self.training or self.mask_when == "always"):
            groups = [self._mask(group, self.mask_tokens[name], self.mask_probs[name]) for group in groups]
        if self.training and (p := self.drop_probs.get(name, 0)) > 0:
            groups = [restrict(group, _random(group, 1 - p)) for group in groups]
        return groups

    def _pad(self, group: Tokens, padding: Tensor) -> Tokens:
        width = self.num_channels - len(padding)
        if group.constant is None:
            return replace(group, constant=F.pad(padding, (width, 0)))
        return replace(group, constant=torch.cat([F.pad(group.constant, (0, width - len(group.constant))), padding]))

    def _mask(self, group: Tokens, vector: Tensor, p: float) -> Tokens:
        if p == 0:  # keep the mask token in the graph, with a gradient of zero
            assert group.constant is not None
            return replace(group, constant=group.constant + 0 * vector)
        return replace_inputs(group, vector, _random(group, p))

    def _drop_modalities(self, groups: dict[str, list[Tokens]]) -> dict[str, list[Tokens]]:
        probabilities = [self.drop_modality_probs.get(name, 0.0) for name in self.names]
        content = groups[self.names[0]][0].content
        limits = torch.tensor(probabilities, device=content.device)
        keep = torch.rand(content.shape[0], len(probabilities), device=content.device) >= limits  # [B, modalities]
        keep = keep | ~keep.any(1, keepdim=True)
        return {name: [restrict(group, keep[:, i]) for group in groups[name]] for i, name in enumerate(self.names)}

    def _probabilities(self, argument: str, given: Mapping[str, float] | None) -> dict[str, float]:
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"{argument}={given!r} must be a dict from names to probabilities")
        for name, p in (given or {}).items():
            if name not in self.names:
                raise ValueError(f"{argument} has the unknown modality {name!r}: names are {self.names}")
            if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
                raise ValueError(f"{argument}[{name!r}]={p!r} must be a probability from 0 to 1")
        return {name: float(p) for name, p in (given or {}).items()}


def _clear(x: Any, present: Tensor) -> Any:
    """Return `x` with zeros for samples that are not present, so that their values affect neither checks nor statistics."""
    if isinstance(x, Located):
        shared = not isinstance(x.coordinates, Tensor) or x.coordinates.ndim == 1  # across samples
        return Located(_clear(x.values, present), x.coordinates if shared else _clear(x.coordinates, present))
    if isinstance(x, Mapping):
        return {name: _clear(value, present) for name, value in x.items()}
    if not isinstance(x, Tensor):
        return x
    if x.shape[0] != present.shape[0]:
        raise ValueError(f"mask has shape {list(present.shape)}, but x has {x.shape[0]} samples: give one entry per sample")
    return x.masked_fill(~present.reshape(-1, *[1] * (x.ndim - 1)), 0)


def restrict(group: Tokens, keep: Tensor) -> Tokens:
    """Return the group with inputs masked where `keep`, `[B, *axes]` or `[B]`, is False."""
    keep = keep.reshape(*keep.shape, *[1] * (group.content.ndim - 1 - keep.ndim))
    keep = keep.expand(group.content.shape[0], *group.content.shape[2:])
    return replace(group, mask=keep if group.mask is None else group.mask & keep)


def replace_inputs(group: Tokens, vector: Tensor, replaced: Tensor) -> Tokens:
    """Return the group with encoded inputs replaced by `vector`, `[C]`, where `replaced`, `[B, *axes]`, is True.

    The group remains factored. For replaced inputs, the content is zero, each table gets a row of zeros, and an additional
    table of two rows holds the vector; for the other inputs it holds the constant. The mask does not change.
    """
    width = group.num_channels
    constant = vector.new_zeros(0) if group.constant is None else group.constant
    either = torch.stack([F.pad(constant, (0, width - len(constant))), vector])
    replaced_BM1 = replaced.flatten(1).unsqueeze(-1)
    lengths = torch.tensor([table.shape[-2] for table in group.tables], dtype=torch.long, device=vector.device)
    index = torch.where(replaced_BM1, lengths, index_of(group))
    return Tokens(
        content=group.content.masked_fill(replaced.unsqueeze(1), 0).flatten(2),
        positions=Positions(
            tables=[either, *(F.pad(table, (0, 0, 0, 1)) for table in group.tables)],
            index=torch.cat([replaced_BM1.long(), index], dim=-1),
            starts=[0, *group.starts],
        ),
        mask=None if group.mask is None else group.mask.flatten(1),
        embedding=group.embedding,
    )


def _random(group: Tokens, p: float) -> Tensor:
    """Return random booleans, True with probability p, `[B, *axes]`."""
    shape = (group.content.shape[0], *group.content.shape[2:])
    return torch.rand(shape, device=group.content.device) < p
