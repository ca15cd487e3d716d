#!/usr/bin/env python3
"""Recipe for speaker verification by the cosine similarity of embeddings.

To run it:

> python speaker_verification_cosine.py hparams/verification_redimnet2.yaml \
    --data_folder /path/to/VoxCeleb1 --checkpoint /path/to/model

Each file of the trial list is embedded once. <output_folder> then holds
scores.txt with one line ``enrol test label score`` for each trial,
results.json, and the plots det.png and score_histogram.png.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import json
import logging
import os
import re
from pathlib import Path

import torch
from command_line import (
    build_hparam,
    check_types,
    load_hparams,
    main_with_one_line_errors,
    one_line,
    parse_command_line,
)
from speechbrain.inference.classifiers import EncoderClassifier
from trials import read_trials

from redimnet2_lobes.folding import fold
from redimnet2_lobes.inference import encode_utterances
from redimnet2_lobes.metrics import EER, det_curve, minDCF
from redimnet2_lobes.plots import plot_det, plot_score_histogram
from redimnet2_lobes.published import VARIANTS
from redimnet2_lobes.redimnet2 import PassThrough, ReDimNet2

P_TARGET = 0.01  # prior of a trial of one speaker in the minDCF
TRIALS_PER_BLOCK = 65536  # 100 MB for embeddings of 192 values


def main(arguments):
    """Embeds, scores and reports.

    Arguments
    ---------
    arguments : list of str
        The command line without the script's name.
    """
    hparams_file, run_opts, overrides = parse_command_line(arguments)
    hparams = load_hparams(hparams_file, overrides)
    check_hparams(hparams)
    trials = read_trials(hparams["verification_file"])
    check_labels(trials, "verification_file", hparams["verification_file"])
    paths = find_files(trials, hparams["data_folder"], hparams["output_folder"])
    encoder = load_encoder(
        hparams["checkpoint"],
        hparams["variant"],
        Path(hparams_file).parent,
        run_opts,
    )
    network = encoder.mods.embedding_model
    if isinstance(network, ReDimNet2):  # other encoders are verified as well
        encoder.mods.embedding_model = fold(network)
    output_folder = Path(hparams["output_folder"])
    output_folder.mkdir(parents=True, exist_ok=True)
    embeddings = encode_utterances(
        encoder.encode_batch, paths.values(), hparams["seconds_per_batch"]
    )
    scores = cosine_scores(
        trials, {name: embeddings[path] for name, path in paths.items()}
    )
    report(trials, scores, hparams, output_folder)
    warn_of_known_speakers(trials, encoder)


def warn_of_known_speakers(trials, encoder):
    """Warns if a network was trained on speakers that it is tested on.

    Arguments
    ---------
    trials : list of tuple
        Trials (label, enrolment, test).
    encoder : EncoderClassifier
        The network; one without speaker classes does not tell.
    """
    classes = getattr(encoder.hparams, "label_encoder", None)
    speakers = {name.split("/")[0] for _, *pair in trials for name in pair}
    known = speakers & set(classes.lab2ind if classes else ())
    if known:
        print(
            f"warning  {len(known)} of the {len(speakers)} speakers were in "
            "the training: this is no test on unseen speakers"
        )


def check_hparams(hparams):
    """Checks what can be checked before any work is done.

    Arguments
    ---------
    hparams : dict
        The hyperparameters.

    Raises
    ------
    ValueError
        If a value is of the wrong type, or a folder or file is missing.
    """
    check_types(
        hparams,
        data_folder=str,
        verification_file=str,
        checkpoint=str,
        output_folder=str,
        seconds_per_batch=float,
    )
    if hparams["variant"] not in (None, *VARIANTS.values()):
        raise ValueError(
            f"variant: unknown value {hparams['variant']!r}, expected one of "
            f"{', '.join(VARIANTS.values())}"
        )
    if not os.path.isdir(os.path.join(hparams["data_folder"], "wav")):
        raise ValueError(
            f"data_folder: there is no folder wav in {hparams['data_folder']}"
        )
    if not os.path.isfile(hparams["verification_file"]):
        raise ValueError(
            f"verification_file: no file {hparams['verification_file']}"
        )


def check_labels(trials, key, path):
    """Checks that a trial list holds trials of both kinds.

    Arguments
    ---------
    trials : list of tuple
        Trials (label, enrolment, test) from ``read_trials``.
    key : str
        The key that gave the list.
    path : str
        The list.

    Raises
    ------
    ValueError
        If all labels are the same.
    """
    if {label for label, _, _ in trials} != {0, 1}:
        raise ValueError(
            f"{key}: all trials in {path} have label {trials[0][0]}, but "
            "error rates need both labels"
        )


def find_files(trials, data_folder, output_folder, key="data_folder"):
    """Paths of the files that trials name.

    Arguments
    ---------
    trials : list of tuple
        Trials (label, enrolment, test) from ``read_trials``.
    data_folder : str
        The folder that holds ``wav/``.
    output_folder : str
        Receives missing_files.txt if files are missing.
    key : str
        The key that gave the folder, for the error.

    Returns
    -------
    dict
        Each distinct name to its path, in the order of the trials.

    Raises
    ------
    ValueError
        If files are missing: how many, the first, and where all are named.
    """
    names = dict.fromkeys(name for _, *pair in trials for name in pair)
    paths = {name: os.path.join(data_folder, "wav", name) for name in names}
    missing = [path for path in paths.values() if not os.path.isfile(path)]
    if missing:
        os.makedirs(output_folder, exist_ok=True)
        listed = Path(output_folder) / "missing_files.txt"
        write_whole(listed, "".join(f"{path}\n" for path in missing))
        raise ValueError(
            f"{key}: {len(missing)} of the {len(paths)} files that the "
            f"trials name are missing, the first is {missing[0]}; "
            f"{listed} names all"
        )
    return paths


def load_encoder(checkpoint, variant, hparams_folder, run_opts):
    """Loads a network from any of the forms that it is kept in.

    Arguments
    ---------
    checkpoint : str
        A model folder, a hub name, or a file ``embedding_model.ckpt``.
    variant : str or None
        b0 to b6. A file of weights needs it; what a model folder
        says of itself must agree with it.
    hparams_folder : str or Path
        Where ``redimnet2_<variant>.yaml`` is.
    run_opts : RunOptions or dict
        SpeechBrain's run options, such as ``device``.

    Returns
    -------
    EncoderClassifier
        The network, in evaluation mode.

    Raises
    ------
    ValueError
        If it cannot be loaded, its weights do not fit the network exactly, or
        the variant is another one.
    """
    if os.path.isfile(checkpoint):
        return _load_weights_file(checkpoint, variant, hparams_folder, run_opts)
    if os.path.isdir(checkpoint):
        model = os.path.join(checkpoint, "model")
        if os.path.isdir(model):
            raise ValueError(
                f"checkpoint: {checkpoint} is the output of a training; pass "
                f"the model folder in it, {model}"
            )
        if not os.path.isfile(os.path.join(checkpoint, "hyperparams.yaml")):
            raise ValueError(
                f"checkpoint: {checkpoint} has no hyperparams.yaml, so it is "
                "no model folder; for a training checkpoint pass the file "
                "embedding_model.ckpt in it, with --variant"
            )
    elif os.path.isdir(checkpoint.split("/")[0]) or not re.fullmatch(
        r"\w[\w.-]*/\w[\w.-]*", checkpoint
    ):
        raise ValueError(f"checkpoint: no file or folder {checkpoint}")
    return _load_model_folder(checkpoint, variant, run_opts)


def _load_model_folder(source, variant, run_opts):
    # For tensors that do not fit SpeechBrain warns, with a picture of the
    # whole network, and goes on. Here they are an error, see the end.
    logging.getLogger("speechbrain.utils.checkpoints").setLevel(logging.ERROR)
    try:
        # No savedir: nothing is copied or linked, so that a second run never
        # meets the files of another model.
        encoder = EncoderClassifier.from_hparams(
            source=source, run_opts=run_opts
        )
    except Exception as error:
        what = f"the model folder {source}"
        if not os.path.isdir(source):
            what = f"{source} is no file or folder, and as a hub name it"
        raise ValueError(
            f"checkpoint: {what} cannot be loaded ({one_line(error)})"
        ) from error
    found = getattr(encoder.hparams, "variant", None)
    if variant is not None and variant != found:
        raise ValueError(
            f"variant: {variant} was given, but the checkpoint {source} says "
            f"{found or 'nothing of its variant'}; leave out --variant"
        )
    pretrainer = encoder.hparams.pretrainer
    path = pretrainer.paths["embedding_model"]
    network = pretrainer.loadables["embedding_model"]
    check_weights(read_weights(path), network, path, "its hyperparams.yaml")
    return encoder


def _load_weights_file(path, variant, hparams_folder, run_opts):
    weights = read_weights(path)
    if variant is None:
        raise ValueError(
            f"variant: missing; for the weights in {path} pass --variant=..., "
            f"one of {', '.join(VARIANTS.values())}"
        )
    hparams_file = Path(hparams_folder) / f"redimnet2_{variant}.yaml"
    if not hparams_file.is_file():
        raise ValueError(f"variant: {hparams_file} is missing")
    network = build_hparam(hparams_file, "embedding_model")
    check_weights(weights, network, path, hparams_file.name)
    network.load_state_dict(weights)
    return EncoderClassifier(
        modules={
            "compute_features": PassThrough(),
            "mean_var_norm": PassThrough(),
            "embedding_model": network,
        },
        hparams={},
        run_opts=run_opts,
    )


def read_weights(path):
    """Reads a file of tensors by name. No code in it is run.

    Arguments
    ---------
    path : str
        A state dict, as SpeechBrain's checkpointer writes it.

    Returns
    -------
    dict
        Tensors by name.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"checkpoint: {path} is not a file of weights, or it is damaged"
        ) from error
    if isinstance(weights, dict) and "model_config" in weights:
        raise ValueError(
            f"checkpoint: {path} is a published checkpoint; convert it first: "
            f"python -m redimnet2_lobes.convert {path} --output FOLDER"
        )
    if not isinstance(weights, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in weights.values()
    ):
        raise ValueError(
            f"checkpoint: {path} holds something else than the weights of a "
            "network; pass embedding_model.ckpt"
        )
    return weights


def check_weights(weights, network, path, origin):
    """Checks that weights fit a network exactly.

    Arguments
    ---------
    weights : dict
        Tensors by name.
    network : torch.nn.Module
        The network.
    path : str
        The file that the weights are from.
    origin : str
        The file that the network was built from.

    Raises
    ------
    ValueError
        If a tensor is missing, surplus, or has another shape.
    """
    expected = network.state_dict()
    faults = [f"{name} is missing" for name in expected if name not in weights]
    faults += [f"{name} is surplus" for name in weights if name not in expected]
    faults += [
        f"{name} has the shape {list(tensor.shape)}, "
        f"not {list(expected[name].shape)}"
        for name, tensor in weights.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if faults:
        others = f" (and {len(faults) - 1} others)" if len(faults) > 1 else ""
        raise ValueError(
            f"checkpoint: {path} does not fit {origin}: {faults[0]}{others}"
        )


def cosine_scores(trials, embeddings):
    """Cosine similarities of all trials.

    Arguments
    ---------
    trials : list of tuple
        Trials (label, enrolment, test).
    embeddings : dict
        Each name in the trials to its embedding [embedding].

    Returns
    -------
    torch.Tensor
        The scores, -1 to 1, in the order of the trials [trials].

    Example
    -------
    >>> embeddings = {"a": torch.tensor([3.0, 4.0]), "b": torch.ones(2)}
    >>> cosine_scores([(1, "a", "a"), (0, "a", "b")], embeddings)
    tensor([1.0000, 0.9899])
    """
    row = {name: index for index, name in enumerate(embeddings)}
    units = torch.nn.functional.normalize(
        torch.stack(list(embeddings.values())), dim=1
    )
    enrolments = torch.tensor([row[enrolment] for _, enrolment, _ in trials])
    tests = torch.tensor([row[test] for _, _, test in trials])
    return torch.cat(
        [
            (units[enrolment] * units[test]).sum(dim=1)
            for enrolment, test in zip(
                enrolments.split(TRIALS_PER_BLOCK),
                tests.split(TRIALS_PER_BLOCK),
                strict=True,
            )
        ]
    )


def report(trials, scores, hparams, output_folder):
    """Writes scores, results and plots, and prints a table.

    Arguments
    ---------
    trials : list of tuple
        Trials (label, enrolment, test).
    scores : torch.Tensor
        Their scores [trials].
    hparams : dict
        The hyperparameters, named in the results.
    output_folder : Path
        Where to write.
    """
    same = torch.tensor([label for label, _, _ in trials]) == 1
    positive, negative = scores[same], scores[~same]
    eer, eer_threshold = EER(positive, negative)
    min_dcf, min_dcf_threshold = minDCF(positive, negative, p_target=P_TARGET)
    # Papers divide by the cost of a system that always says no.
    normalized = min_dcf / P_TARGET
    checkpoint = os.path.normpath(hparams["checkpoint"])
    if os.path.isabs(checkpoint):  # where it lies is the user's business
        checkpoint = os.path.basename(checkpoint)
    results = {
        "verification_file": os.path.basename(hparams["verification_file"]),
        "checkpoint": checkpoint,
        "files": len({name for _, *pair in trials for name in pair}),
        "same_speaker_trials": len(positive),
        "different_speakers_trials": len(negative),
        "eer_percent": 100 * eer,
        "eer_threshold": eer_threshold,
        "min_dcf": min_dcf,
        "min_dcf_normalized": normalized,
        "min_dcf_threshold": min_dcf_threshold,
        "min_dcf_p_target": P_TARGET,
    }
    write_whole(
        output_folder / "scores.txt",
        "".join(
            f"{enrolment} {test} {label} {score:.9g}\n"
            for (label, enrolment, test), score in zip(
                trials, scores.tolist(), strict=True
            )
        ),
    )
    write_whole(
        output_folder / "results.json", json.dumps(results, indent=2) + "\n"
    )
    far, frr, _ = det_curve(positive, negative)
    name = f"{results['verification_file']}, cosine, {len(trials):,} trials"
    plot_det({name: (far, frr)}, output_folder / "det.png")
    plot_score_histogram(
        positive,
        negative,
        eer_threshold,
        output_folder / "score_histogram.png",
    )
    print(
        f"trials   {len(trials):,}: {len(positive):,} of the same speaker, "
        f"{len(negative):,} of different speakers, {results['files']:,} files\n"
        f"EER      {100 * eer:.2f} % at threshold {eer_threshold:.4f}\n"
        f"minDCF   {normalized:.4f} at threshold {min_dcf_threshold:.4f} "
        f"(p_target {P_TARGET}, normalized; as in SpeechBrain: {min_dcf:.6f})\n"
        f"written  {output_folder}: scores.txt, results.json, det.png, "
        "score_histogram.png"
    )


def write_whole(path, text):
    """Writes a text file that stands under its name only when complete.

    Arguments
    ---------
    path : Path
        The file.
    text : str
        What it shall hold.
    """
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


if __name__ == "__main__":
    main_with_one_line_errors(main)
