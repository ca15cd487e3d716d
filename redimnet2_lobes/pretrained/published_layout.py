"""The layout of published ReDimNet2 checkpoints.

A published file is ``{"model_config": dict, "state_dict": dict}``. This module
reads and makes them: it translates their settings, and says under which names,
and in which axis order, their tensors stand in ours: theirs are [out, in,
frequency, time], ours are [out, in, time, frequency], with pointwise
convolutions as linear layers.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from redimnet2_lobes.models.architecture import STAGE
from redimnet2_lobes.models.blocks import TIME_KERNELS
from redimnet2_lobes.models.front_end import (
    FFT_LENGTH,
    PRE_EMPHASIS,
    WINDOW,
    FrontEnd,
    LogMel,
    TorchaudioLogMel,
)
from redimnet2_lobes.models.redimnet2 import ReDimNet2, Stage
from redimnet2_lobes.pretrained.loading import load_whole, not_finite

Weights = dict[str, torch.Tensor]

# Settings that every released checkpoint shares, with the only value there is.
SHARED_SETTINGS = {
    "spec_in_channels": 1,
    "causal": "none",
    "block_1d_type": "conv+att",
    "block_2d_type": "basic_resnet",
    "compress_tconvs": True,
    "return_2d_output": True,
    "use_freq_pos_enc": False,
    "fm_weigthing_type": "NC",
    "group_divisor": 1,
    "hop_length": 160,
    "pooling_func": "ASTP",
    "global_context_att": True,
    "emb_bn": False,
    "feat_agg_dropout": 0.0,
    "head_activation": None,
    "num_classes": None,
    "pad_right_samples": None,
    "before_pool_offset": None,
    "return_all_outputs": False,
}
# Those of them that a file must hold, since their default is another value.
NOT_DEFAULT = ("causal", "return_2d_output")
# The others, with their types.
TYPES = {
    "F": int,
    "C": int,
    "out_channels": (int, type(None)),
    "stages_setup": (list, tuple),
    "agg_gnorm": bool,
    "dual_agg": bool,
    "embed_dim": int,
    "feat_type": str,
    "spec_params": dict,
}
# What arguments of `ReDimNet2` and of its front-end are called there.
PUBLISHED_NAMES = {
    "base_channels": "C",
    "stages": "stages_setup",
    "out_channels": "out_channels",
    "dual_aggregation": "dual_agg",
    "embedding_size": "embed_dim",
    "front_end": "feat_type",
    "mel_bins": "F",
}
# Widths of the masks of SpecAugment, which is off in every released one.
MASK_SETTINGS = {"freq_mask_width", "time_mask_width"}


def load_published(path: str | os.PathLike) -> ReDimNet2:
    """Loads a published checkpoint, without running code from it.

    A ValueError, which does not name the file, says that it is damaged or no
    published checkpoint, that its architecture is not supported, or which
    tensor does not fit it.

    Example
    -------
    >>> path = getfixture("tmp_path") / "published.pt"
    >>> torch.save({"weights": torch.zeros(1)}, path)
    >>> load_published(path)
    Traceback (most recent call last):
    ValueError: not a published ReDimNet2 checkpoint, which is a dict of \
model_config and state_dict
    """
    content = _read(path)
    network = build_network(content["model_config"])
    constants, weights = {}, {}
    for name, tensor in content["state_dict"].items():
        group = constants if name.startswith("spec.") else weights
        group[name] = tensor
    _check_front_end(network.front_end, constants)
    take_weights(network, weights)
    if name := not_finite(weights):
        raise ValueError(
            f"{name} holds values that are not finite; take another checkpoint"
        )
    return network


def _read(path: str | os.PathLike) -> dict:
    try:
        content = load_whole(path)
    except ValueError:
        raise ValueError(
            "not a complete checkpoint of tensors only; fetch it again"
        ) from None
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), dict)
        for key in ("model_config", "state_dict")
    ):
        raise ValueError(
            "not a published ReDimNet2 checkpoint, which is a dict of "
            "model_config and state_dict"
        )
    for name, value in content["state_dict"].items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} is not a tensor")
    return content


def published_checkpoint(network: ReDimNet2) -> dict:
    """What the authors' code would store of a network.

    ``minimum_seconds`` has no place in it: the published code does not repeat
    short utterances.

    Example
    -------
    >>> stage = dict(blocks=1, expansion=1, reduction=8)
    >>> stages = [dict(frequency_stride=2, time_stride=2, **stage)]
    >>> checkpoint = published_checkpoint(ReDimNet2(LogMel(), 4, stages))
    >>> checkpoint["model_config"]["stages_setup"]
    [((2, 2), 1, 1, ((3, 3),), 8)]
    >>> checkpoint["state_dict"]["backbone.stage0.2.weight"].shape
    torch.Size([8, 1, 2, 2])
    """
    return {
        "model_config": published_config(network),
        "state_dict": {
            **_published_weights(network),
            **_front_end_constants(network.front_end),
        },
    }


def published_config(network: ReDimNet2) -> dict:
    """The ``model_config`` of a network in a published checkpoint.

    Example
    -------
    >>> stage = dict(blocks=1, expansion=1, reduction=8)
    >>> stages = [dict(frequency_stride=2, time_stride=2, **stage)]
    >>> published_config(ReDimNet2(LogMel(), 4, stages))["C"]
    4
    """
    arguments = network.arguments()
    front_end = network.front_end
    is_torchaudio = isinstance(front_end, TorchaudioLogMel)
    config = {
        "F": front_end.mel_bins,
        "C": arguments["base_channels"],
        "embed_dim": arguments["embedding_size"],
        "stages_setup": [
            (
                (stage["frequency_stride"], stage["time_stride"]),
                stage["blocks"],
                stage["expansion"],
                ((3, 3),),  # kernel sizes that only other block types read
                stage["reduction"],
            )
            for stage in arguments["stages"]
        ],
        "feat_type": "pt" if is_torchaudio else "tf",
        "spec_params": {
            "do_preemph": True,
            "do_spec_aug": False,
            "norm_signal": not is_torchaudio or front_end.normalize,
        },
    }
    config.update(SHARED_SETTINGS)
    # What the first version of the published code does not know is left out
    # where it is at its default.
    del config["return_all_outputs"]
    for key, name in (
        ("out_channels", "out_channels"),
        ("agg_gnorm", "aggregation_norm"),
        ("dual_agg", "dual_aggregation"),
    ):
        if arguments[name]:
            config[key] = arguments[name]
    return config


def build_network(model_config: dict) -> ReDimNet2:
    """Builds the network that a ``model_config`` describes, with fresh weights.

    A ValueError names what is not supported.

    Example
    -------
    >>> network = build_network(
    ...     {
    ...         "F": 72,
    ...         "C": 4,
    ...         "causal": "none",
    ...         "feat_type": "tf",
    ...         "return_2d_output": True,
    ...         "spec_params": {"norm_signal": True},
    ...         "stages_setup": [((2, 2), 1, 1, ((3, 3),), 8)],
    ...     }
    ... )
    >>> network.eval()(torch.randn(1, 16000)).shape
    torch.Size([1, 1, 192])
    """
    unknown = sorted(set(model_config) - set(TYPES) - set(SHARED_SETTINGS))
    if unknown:
        raise ValueError(f"model_config.{unknown[0]}: unknown option")
    for key, value in SHARED_SETTINGS.items():
        default = None if key in NOT_DEFAULT else value
        found = model_config.get(key, default)
        # bool and int compare equal; 1 is no word for True here.
        if found != value or isinstance(found, bool) != isinstance(value, bool):
            raise ValueError(
                f"model_config.{key}: {found!r} is not supported, only "
                f"{value!r}"
            )
    for key in ("C", "F", "feat_type", "stages_setup"):
        if key not in model_config:
            raise ValueError(f"model_config.{key}: missing")
    for key, value in model_config.items():
        expected = TYPES.get(key, object)
        if not isinstance(value, expected) or (
            expected is int and (isinstance(value, bool) or value < 1)
        ):
            raise ValueError(f"model_config.{key}: unusable value {value!r}")
    return ReDimNet2(
        _front_end(model_config),
        base_channels=model_config["C"],
        stages=[
            _stage(index, entry)
            for index, entry in enumerate(model_config["stages_setup"])
        ],
        out_channels=model_config.get("out_channels"),
        aggregation_norm=model_config.get("agg_gnorm", False),
        dual_aggregation=model_config.get("dual_agg", False),
        embedding_size=model_config.get("embed_dim", 192),
    )


def _front_end(model_config: dict) -> FrontEnd:
    settings = dict(model_config.get("spec_params", {}))
    normalize = settings.pop("norm_signal", False)
    for key, value in (("do_preemph", True), ("do_spec_aug", False)):
        found = settings.pop(key, value)
        if found is not value:
            raise ValueError(
                f"model_config.spec_params.{key}: {found!r} is not supported, "
                f"only {value!r}"
            )
    unknown = sorted(set(settings) - MASK_SETTINGS)
    if unknown:
        raise ValueError(
            f"model_config.spec_params.{unknown[0]}: unknown option"
        )
    kind = model_config["feat_type"]
    if kind in ("tf", "tf_mel"):
        if not normalize:
            raise ValueError(
                "model_config.spec_params.norm_signal: only True is supported "
                "with feat_type 'tf'"
            )
        return LogMel(model_config["F"])
    if kind in ("pt", "pt_mel"):
        return TorchaudioLogMel(model_config["F"], normalize=normalize)
    raise ValueError(
        f"model_config.feat_type: {kind!r} is not supported, only 'tf' and 'pt'"
    )


def _stage(index: int, entry: Sequence) -> dict[str, int]:
    try:
        (frequency, time), blocks, expansion, _, reduction = entry
    except (TypeError, ValueError):
        raise ValueError(
            f"model_config.stages_setup[{index}]: expected (strides, blocks, "
            f"expansion, kernels, reduction), found {entry!r}"
        ) from None
    values = frequency, time, blocks, expansion, reduction
    return dict(zip(STAGE, values, strict=True))


def _check_front_end(front_end: FrontEnd, constants: Weights) -> None:
    """Compares the constants of a file, unless it has none, with ours."""
    if not constants:
        return
    expected = _front_end_constants(front_end)
    for name in sorted(set(expected) ^ set(constants)):
        problem = "missing" if name in expected else "not one of this front-end"
        raise ValueError(f"{name}: {problem}")
    for name, value in expected.items():
        found = constants[name]
        if found.shape != value.shape or not torch.allclose(
            found.double(), value.double(), atol=1e-5
        ):
            raise ValueError(
                f"{name}: differs from our front-end, which fits the released "
                "checkpoints only"
            )


def _front_end_constants(front_end: FrontEnd) -> Weights:
    """Bit for bit what the published code builds, by their names there."""
    constants = {"1.flipped_filter": torch.tensor([[[-PRE_EMPHASIS, 1.0]]])}
    if isinstance(front_end, TorchaudioLogMel):
        constants["2.spectrogram.window"] = front_end.window.clone()
        constants["2.mel_scale.fb"] = front_end.mel_filters.clone()
    else:
        # The published code computes its DFT by products with windowed
        # kernels. The order of operations decides the last bit.
        bins = torch.arange(FFT_LENGTH // 2, dtype=torch.float64)
        samples = torch.arange(WINDOW, dtype=torch.float64)
        angle = 2 * torch.pi * samples * bins[:, None, None] / FFT_LENGTH
        constants["2.real_kernel_pt"] = angle.cos().float() * front_end.window
        constants["2.image_kernel_pt"] = angle.sin().float() * front_end.window
        mel_filters = front_end.mel_filters.T.unsqueeze(2)
        constants["2.melbanks_pt"] = mel_filters.contiguous()
    return {
        f"spec.torchfbank.{name}": value for name, value in constants.items()
    }


def take_weights(network: ReDimNet2, state_dict: Weights) -> None:
    """Loads a published state dict into a network of the same architecture.

    It comes without front-end constants. A ValueError names missing or surplus
    tensors and wrong shapes.

    Example
    -------
    >>> stage = dict(blocks=1, expansion=1, reduction=8)
    >>> stages = [dict(frequency_stride=2, time_stride=2, **stage)]
    >>> take_weights(ReDimNet2(LogMel(), 4, stages), {})
    Traceback (most recent call last):
    ValueError: 93 tensors are missing, the first is backbone.stem.0.weight
    """
    expected = _published_weights(network)
    missing = [name for name in expected if name not in state_dict]
    if missing:
        raise ValueError(
            f"{len(missing)} tensors are missing, the first is {missing[0]}"
        )
    surplus = sorted(set(state_dict) - set(expected))
    if surplus:
        raise ValueError(
            f"{len(surplus)} tensors are not part of this architecture, the "
            f"first is {surplus[0]}"
        )
    for name, tensor in expected.items():
        if state_dict[name].shape != tensor.shape:
            raise ValueError(
                f"{name}: shape {list(state_dict[name].shape)} does not fit "
                f"this architecture, where it is {list(tensor.shape)}"
            )
    weights = {}
    for name, published, transform in _layout(network):
        parts = [transform.to_ours(state_dict[part]) for part in published]
        weights[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    network.load_state_dict(weights)


def _published_weights(network: ReDimNet2) -> Weights:
    """The inverse of ``take_weights``."""
    ours = network.state_dict()
    weights = {}
    for name, published, transform in _layout(network):
        parts = [ours[name]]
        if len(published) > 1:
            parts = ours[name].chunk(len(published))
        for part_name, part in zip(published, parts, strict=True):
            # The clone, since of a view torch.save writes the whole storage.
            weights[part_name] = transform.to_published(part).clone(
                memory_format=torch.contiguous_format
            )
    return weights


class _Transform(NamedTuple):
    """How a published tensor becomes ours, and back."""

    to_ours: Callable[[torch.Tensor], torch.Tensor]
    to_published: Callable[[torch.Tensor], torch.Tensor]

    def then(self, other: "_Transform") -> "_Transform":
        """Joins two, the other after this one."""
        return _Transform(
            lambda x: other.to_ours(self.to_ours(x)),
            lambda x: self.to_published(other.to_published(x)),
        )


SAME = _Transform(lambda x: x, lambda x: x)
# [out, in, frequency, time] to [out, in, time, frequency].
SWAP_AXES = _Transform(lambda x: x.transpose(2, 3), lambda x: x.transpose(2, 3))
# A pointwise convolution's weight to a linear layer's.
POINTWISE_1D = _Transform(lambda x: x.squeeze(2), lambda x: x.unsqueeze(2))
POINTWISE_2D = POINTWISE_1D.then(POINTWISE_1D)
# A convolution over time to one over time and an axis of one bin.
ADD_BIN = _Transform(lambda x: x.unsqueeze(3), lambda x: x.squeeze(3))
# [1, maps, channels, 1] to [maps, channels].
DROP_OUTER_AXES = _Transform(
    lambda x: x.squeeze(3).squeeze(0), lambda x: x.unsqueeze(0).unsqueeze(3)
)


def _bins_first(axis: int, parts: int, bins: int) -> _Transform:
    """Of each part, channel * bins + bin to bin * channels + channel."""

    def reorder(x: torch.Tensor, sizes: tuple[int, int]) -> torch.Tensor:
        x = x.unflatten(axis, (parts, *sizes))
        return x.transpose(axis + 1, axis + 2).flatten(axis, axis + 2)

    return _Transform(
        lambda x: reorder(x, (-1, bins)), lambda x: reorder(x, (bins, -1))
    )


def _layout(network: ReDimNet2) -> Iterator[tuple[str, list[str], _Transform]]:
    """Our name of each tensor, theirs, and how theirs becomes ours.

    Where theirs are several, ours is these one below the other.
    """
    # Other vectors than these have no axis of bins.
    vectors = {
        "pooling.attention": _bins_first(0, 1, network.bins),
        "norm": _bins_first(0, 2, network.bins),
    }
    for ours, theirs, transform in _modules(network):
        for kind, tensor in network.get_submodule(ours).state_dict().items():
            names = [f"{theirs}.{kind}"]
            if ours.endswith("aggregation"):
                names = [f"{theirs}.w"]
            elif ours.endswith("query_key_value"):
                names = [f"{theirs}.{part}_proj.{kind}" for part in "qkv"]
            if tensor.ndim == 1:
                yield f"{ours}.{kind}", names, vectors.get(ours, SAME)
            else:
                yield f"{ours}.{kind}", names, transform


# Our name, their name, and how weights of more than one axis become ours.
Modules = Iterator[tuple[str, str, _Transform]]


def _modules(network: ReDimNet2) -> Modules:
    yield "stem.convolution", "backbone.stem.0", SWAP_AXES
    yield "stem.norm", "backbone.stem.1", SAME
    if network.stem.map_norm is not None:
        yield "stem.map_norm", "backbone.stem_gnorm", SAME
    for index, stage in enumerate(network.stages):
        assert isinstance(stage, Stage)
        yield from _stage_modules(index, stage)
    yield "aggregation", "backbone.fin_wght1d", DROP_OUTER_AXES
    if network.head is not None:
        yield "head", "backbone.head", POINTWISE_2D
    context = POINTWISE_1D.then(_bins_first(1, 3, network.bins))
    yield "pooling.context", "pool.linear1", context
    attention = POINTWISE_1D.then(_bins_first(0, 1, network.bins))
    yield "pooling.attention", "pool.linear2", attention
    yield "norm", "bn", SAME
    yield "projection", "linear", _bins_first(1, 2, network.bins)


def _stage_modules(index: int, stage: Stage) -> Modules:
    ours = f"stages.{index}"
    dual = stage.dual_aggregation
    # The published stage is one sequence, cut in three by dual aggregation.
    front = f"backbone.stage{index}" + ("_pre" if dual else "")
    yield f"{ours}.aggregation", f"{front}.0", DROP_OUTER_AXES
    yield f"{ours}.reshape", f"{front}.2", SWAP_AXES
    position = 3
    for block in range(len(stage.blocks)):
        name, theirs = (
            f"{ours}.blocks.{block}",
            f"{front}.{position}.conv_block",
        )
        for i in (1, 2):
            yield f"{name}.depthwise_{i}", f"{theirs}.conv{i}", SWAP_AXES
            yield f"{name}.pointwise_{i}", f"{theirs}.conv{i}pw", SAME
            yield f"{name}.norm_{i}", f"{theirs}.bn{i}", SAME
        position += 1
    if stage.contract is not None:
        for i in range(2):
            yield f"{ours}.contract.{i}", f"{front}.{position}.{i}", SAME
        position += 1
    position += 1  # the 1-D view
    context = f"backbone.stage{index}_1d" if dual else f"{front}.{position}"
    yield from _time_context_modules(f"{ours}.time_context", context)
    position += 2  # the time-context block and the repetition of frames
    if stage.map_norms is not None:
        names = [f"{front}.{position}"]
        if dual:
            names = [f"backbone.stage{index}_up_{i}d.1" for i in (2, 1)]
        for i, name in enumerate(names):
            yield f"{ours}.map_norms.{i}", name, SAME


def _time_context_modules(ours: str, theirs: str) -> Modules:
    yield f"{ours}.contract", f"{theirs}.red_dim_conv.0", POINTWISE_1D
    yield f"{ours}.norm", f"{theirs}.red_dim_conv.1", SAME
    for i in range(len(TIME_KERNELS)):
        name, block = f"{ours}.convolutions.{i}", f"{theirs}.tcm.{i}"
        yield f"{name}.depthwise", f"{block}.dwconvs.0", ADD_BIN
        yield f"{name}.norm", f"{block}.norm", SAME
        yield f"{name}.pointwise", f"{block}.pwconv1", POINTWISE_1D
    name, block = f"{ours}.attention", f"{theirs}.tcm.{len(TIME_KERNELS)}"
    yield f"{name}.query_key_value", f"{block}.attention", SAME
    yield f"{name}.output", f"{block}.attention.out_proj", SAME
    yield f"{name}.attention_norm", f"{block}.layer_norm", SAME
    for i, layer in ((0, "intermediate_dense"), (2, "output_dense")):
        yield f"{name}.feed_forward.{i}", f"{block}.feed_forward.{layer}", SAME
    yield f"{name}.feed_forward_norm", f"{block}.final_layer_norm", SAME
    yield f"{ours}.expand", f"{theirs}.exp_dim_conv", POINTWISE_1D
