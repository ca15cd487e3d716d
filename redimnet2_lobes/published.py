"""The layout of published ReDimNet2 checkpoints.

A published file is ``{"model_config": dict, "state_dict": dict}``. This module
reads its architecture and says under which names, and in which axis order, its
tensors stand in ours: theirs are [out, in, frequency, time], ours are
[out, in, time, frequency], with pointwise convolutions as linear layers.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import torch

from redimnet2_lobes.front_end import (
    FFT_LENGTH,
    PRE_EMPHASIS,
    WINDOW,
    LogMel,
    TorchaudioLogMel,
)
from redimnet2_lobes.redimnet2 import TIME_KERNELS, ReDimNet2

# Settings that every released checkpoint shares: key, the only value there is,
# and whether a file may leave it out (where that value is the default).
SHARED_SETTINGS = (
    ("spec_in_channels", 1, True),
    ("causal", "none", False),
    ("block_1d_type", "conv+att", True),
    ("block_2d_type", "basic_resnet", True),
    ("compress_tconvs", True, True),
    ("return_2d_output", True, False),
    ("use_freq_pos_enc", False, True),
    ("fm_weigthing_type", "NC", True),
    ("group_divisor", 1, True),
    ("hop_length", 160, True),
    ("pooling_func", "ASTP", True),
    ("global_context_att", True, True),
    ("emb_bn", False, True),
    ("feat_agg_dropout", 0.0, True),
    ("head_activation", None, True),
    ("num_classes", None, True),
    ("pad_right_samples", None, True),
    ("before_pool_offset", None, True),
    ("return_all_outputs", False, True),
)
ARCHITECTURE_SETTINGS = {
    "F",
    "C",
    "out_channels",
    "stages_setup",
    "agg_gnorm",
    "dual_agg",
    "embed_dim",
    "feat_type",
    "spec_params",
}
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
# Base channels tell the released variants apart.
VARIANTS = {
    12: "b0",
    16: "b1",
    20: "b2",
    24: "b3",
    32: "b4",
    48: "b5",
    64: "b6",
}
# Widths of the masks of SpecAugment, which is off in every released one.
MASK_SETTINGS = {"freq_mask_width", "time_mask_width"}


def build_network(model_config):
    """Builds the network that a published ``model_config`` describes.

    Arguments
    ---------
    model_config : dict
        As stored in a published checkpoint.

    Returns
    -------
    ReDimNet2
        With fresh weights. A ValueError names what is not supported.

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
    known = ARCHITECTURE_SETTINGS | {key for key, _, _ in SHARED_SETTINGS}
    unknown = sorted(set(model_config) - known)
    if unknown:
        raise ValueError(f"model_config.{unknown[0]}: unknown option")
    for key, value, optional in SHARED_SETTINGS:
        if key not in model_config and optional:
            continue
        # bool and int compare equal; 1 is no word for True here.
        found = model_config.get(key)
        if found != value or isinstance(found, bool) != isinstance(value, bool):
            raise ValueError(
                f"model_config.{key}: {found!r} is not supported, only "
                f"{value!r}"
            )
    missing = sorted(
        {"F", "C", "stages_setup", "feat_type"} - set(model_config)
    )
    if missing:
        raise ValueError(f"model_config.{missing[0]}: missing")
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


def _front_end(model_config):
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


def _stage(index, entry):
    try:
        (frequency, time), blocks, expansion, _, reduction = entry
    except (TypeError, ValueError):
        raise ValueError(
            f"model_config.stages_setup[{index}]: expected (strides, blocks, "
            f"expansion, kernels, reduction), found {entry!r}"
        ) from None
    return {
        "frequency_stride": frequency,
        "time_stride": time,
        "blocks": blocks,
        "expansion": expansion,
        "reduction": reduction,
    }


def check_front_end(front_end, constants):
    """Compares the front-end constants of a published file with ours.

    Arguments
    ---------
    front_end : LogMel or TorchaudioLogMel
        Our front-end.
    constants : dict of str to torch.Tensor
        The tensors of the file whose names begin with ``spec.``; none at all
        is fine. A ValueError names the first that differs.

    Example
    -------
    >>> check_front_end(LogMel(), {"spec.window": torch.ones(400)})
    Traceback (most recent call last):
    ValueError: spec.torchfbank.1.flipped_filter: missing
    """
    if not constants:
        return
    expected = {
        f"spec.torchfbank.{name}": value
        for name, value in _front_end_constants(front_end).items()
    }
    for name in sorted(set(expected) ^ set(constants)):
        problem = "missing" if name in expected else "not one of this front-end"
        raise ValueError(f"{name}: {problem}")
    for name, value in expected.items():
        found = constants[name]
        if found.numel() != value.numel() or not torch.allclose(
            found.double().reshape(value.shape), value.double(), atol=1e-5
        ):
            raise ValueError(
                f"{name}: differs from our front-end, which fits the released "
                "checkpoints only"
            )


def _front_end_constants(front_end):
    constants = {"1.flipped_filter": torch.tensor([-PRE_EMPHASIS, 1.0])}
    if isinstance(front_end, TorchaudioLogMel):
        constants["2.spectrogram.window"] = front_end.window
        constants["2.mel_scale.fb"] = front_end.mel_filters
        return constants
    # The published code computes its DFT by products with windowed kernels.
    bins = torch.arange(FFT_LENGTH // 2, dtype=torch.float64).unsqueeze(1)
    samples = torch.arange(WINDOW, dtype=torch.float64)
    angle = 2 * torch.pi * bins * samples / FFT_LENGTH
    constants["2.real_kernel_pt"] = angle.cos() * front_end.window
    constants["2.image_kernel_pt"] = angle.sin() * front_end.window
    constants["2.melbanks_pt"] = front_end.mel_filters.T
    return constants


def take_weights(network, state_dict):
    """Loads a published state dict into a network of the same architecture.

    Arguments
    ---------
    network : ReDimNet2
        From ``build_network``.
    state_dict : dict of str to torch.Tensor
        Published weights, without front-end constants. A ValueError names
        missing or surplus tensors and wrong shapes.

    Example
    -------
    >>> stage = dict(blocks=1, expansion=1, reduction=8)
    >>> stages = [dict(frequency_stride=2, time_stride=2, **stage)]
    >>> take_weights(ReDimNet2(LogMel(), 4, stages), {})
    Traceback (most recent call last):
    ValueError: 93 tensors are missing, the first is backbone.stem.0.weight
    """
    layout = list(published_layout(network))
    names = [name for _, published, _ in layout for name in published]
    missing = [name for name in names if name not in state_dict]
    if missing:
        raise ValueError(
            f"{len(missing)} tensors are missing, the first is {missing[0]}"
        )
    surplus = sorted(set(state_dict) - set(names))
    if surplus:
        raise ValueError(
            f"{len(surplus)} tensors are not part of this architecture, the "
            f"first is {surplus[0]}"
        )
    ours = network.state_dict()
    weights = {}
    for name, published, transform in layout:
        found = [state_dict[name] for name in published]
        shape = ours[name].shape
        try:
            weights[name] = transform(*found)
            fits = weights[name].shape == shape
        except (IndexError, RuntimeError):
            fits = False
        if not fits:
            shapes = " and ".join(str(list(x.shape)) for x in found)
            raise ValueError(
                f"{published[0]}: shape {shapes} does not fit {name} "
                f"{list(shape)}"
            )
    network.load_state_dict(weights)


def published_layout(network):
    """Pairs each tensor of a network with its published counterparts.

    Arguments
    ---------
    network : ReDimNet2
        The network.

    Yields
    ------
    name : str
        Name in our state dict.
    published : tuple of str
        Names in the published state dict.
    transform : callable
        Published tensors to ours.

    Example
    -------
    >>> stage = dict(blocks=1, expansion=1, reduction=8)
    >>> stages = [dict(frequency_stride=2, time_stride=2, **stage)]
    >>> network = ReDimNet2(LogMel(), 4, stages)
    >>> layout = {ours: theirs for ours, theirs, _ in published_layout(network)}
    >>> layout["stages.0.reshape.weight"]
    ('backbone.stage0.2.weight',)
    >>> set(layout) == set(network.state_dict())
    True
    """
    yield from _weight_and_bias(
        "stem.convolution", "backbone.stem.0", _swap_axes
    )
    yield from _weight_and_bias("stem.norm", "backbone.stem.1")
    if network.stem.map_norm is not None:
        yield from _weight_and_bias("stem.map_norm", "backbone.stem_gnorm")
    for index, stage in enumerate(network.stages):
        yield from _stage_layout(index, stage)
    yield "aggregation.weight", ("backbone.fin_wght1d.w",), _drop_outer_axes
    if network.head is not None:
        yield from _weight_and_bias("head", "backbone.head", _squeeze)

    def bins_first(x, axis, parts):
        """Channel * bins + bin to bin * channels + channel."""
        x = x.unflatten(axis, (parts, -1, network.bins))
        return x.transpose(axis + 1, axis + 2).flatten(axis, axis + 2)

    yield (
        "pooling.context.weight",
        ("pool.linear1.weight",),
        lambda x: bins_first(_squeeze(x), 1, 3),
    )
    yield "pooling.context.bias", ("pool.linear1.bias",), _same
    yield (
        "pooling.attention.weight",
        ("pool.linear2.weight",),
        lambda x: bins_first(_squeeze(x), 0, 1),
    )
    yield (
        "pooling.attention.bias",
        ("pool.linear2.bias",),
        lambda x: bins_first(x, 0, 1),
    )
    yield from _batch_norm("norm", "bn", lambda x: bins_first(x, 0, 2))
    yield (
        "projection.weight",
        ("linear.weight",),
        lambda x: bins_first(x, 1, 2),
    )
    yield "projection.bias", ("linear.bias",), _same


def _stage_layout(index, stage):
    ours = f"stages.{index}"
    dual = stage.dual_aggregation
    # The published stage is one sequence, cut in three by dual aggregation.
    front = f"backbone.stage{index}" + ("_pre" if dual else "")
    yield f"{ours}.aggregation.weight", (f"{front}.0.w",), _drop_outer_axes
    yield from _weight_and_bias(f"{ours}.reshape", f"{front}.2", _swap_axes)
    position = 3
    for block in range(len(stage.blocks)):
        theirs = f"{front}.{position}.conv_block"
        for i in (1, 2):
            depthwise = f"{ours}.blocks.{block}.depthwise_{i}.weight"
            yield depthwise, (f"{theirs}.conv{i}.weight",), _swap_axes
            yield from _weight_and_bias(
                f"{ours}.blocks.{block}.pointwise_{i}", f"{theirs}.conv{i}pw"
            )
            yield from _batch_norm(
                f"{ours}.blocks.{block}.norm_{i}", f"{theirs}.bn{i}"
            )
        position += 1
    if stage.contract is not None:
        yield from _weight_and_bias(
            f"{ours}.contract.0", f"{front}.{position}.0"
        )
        yield from _batch_norm(f"{ours}.contract.1", f"{front}.{position}.1")
        position += 1
    position += 1  # the 1-D view
    context = f"backbone.stage{index}_1d" if dual else f"{front}.{position}"
    yield from _time_context(f"{ours}.time_context", context)
    position += 2  # the time-context block and the repetition of frames
    if stage.map_norms is not None:
        names = [f"{front}.{position}"]
        if dual:
            names = [f"backbone.stage{index}_up_{i}d.1" for i in (2, 1)]
        for i, name in enumerate(names):
            yield from _weight_and_bias(f"{ours}.map_norms.{i}", name)


def _time_context(ours, theirs):
    contract = f"{theirs}.red_dim_conv"
    yield from _weight_and_bias(f"{ours}.contract", f"{contract}.0", _squeeze)
    yield from _weight_and_bias(f"{ours}.norm", f"{contract}.1")
    for i in range(len(TIME_KERNELS)):
        convolution, block = f"{ours}.convolutions.{i}", f"{theirs}.tcm.{i}"
        yield from _weight_and_bias(
            f"{convolution}.depthwise",
            f"{block}.dwconvs.0",
            lambda x: x.unsqueeze(3),
        )
        yield from _batch_norm(f"{convolution}.norm", f"{block}.norm")
        yield from _weight_and_bias(
            f"{convolution}.pointwise", f"{block}.pwconv1", _squeeze
        )
    attention, block = f"{ours}.attention", f"{theirs}.tcm.{len(TIME_KERNELS)}"
    for kind in ("weight", "bias"):
        yield (
            f"{attention}.query_key_value.{kind}",
            tuple(f"{block}.attention.{i}_proj.{kind}" for i in "qkv"),
            lambda *parts: torch.cat(parts),
        )
    pairs = (
        ("output", "attention.out_proj"),
        ("attention_norm", "layer_norm"),
        ("feed_forward.0", "feed_forward.intermediate_dense"),
        ("feed_forward.2", "feed_forward.output_dense"),
        ("feed_forward_norm", "final_layer_norm"),
    )
    for name, published in pairs:
        yield from _weight_and_bias(
            f"{attention}.{name}", f"{block}.{published}"
        )
    yield from _weight_and_bias(
        f"{ours}.expand", f"{theirs}.exp_dim_conv", _squeeze
    )


def _same(x):
    return x


def _swap_axes(x):
    """[out, in, frequency, time] to [out, in, time, frequency]."""
    return x.transpose(2, 3)


def _squeeze(x):
    """A pointwise convolution's weight to a linear layer's."""
    return x.flatten(1)


def _drop_outer_axes(x):
    """[1, maps, channels, 1] to [maps, channels]."""
    return x.squeeze(3).squeeze(0)


def _weight_and_bias(ours, theirs, transform=_same):
    yield f"{ours}.weight", (f"{theirs}.weight",), transform
    yield f"{ours}.bias", (f"{theirs}.bias",), _same


def _batch_norm(ours, theirs, transform=_same):
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{ours}.{name}", (f"{theirs}.{name}",), transform
    counter = "num_batches_tracked"
    yield f"{ours}.{counter}", (f"{theirs}.{counter}",), _same
