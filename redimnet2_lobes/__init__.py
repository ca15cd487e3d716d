"""ReDimNet2 speaker encoders as SpeechBrain lobes.

The rooms, each of which imports from those below it only:

 * cli: the command ``redimnet2``
 * recipe: what the scripts of a recipe share: command line, YAML, checks
 * integrations: the models in the pipelines of other projects
 * voices: people: enrolling, keeping and knowing them, who spoke when
 * door: loads a model, whatever it is kept as
 * executorch: export to ExecuTorch, and running it
 * onnx: export to ONNX, and running it
 * training: Brain, losses, schedules, batches, checkpoints, validation
 * pretrained: model folders, published checkpoints, the hub
 * scoring: from embeddings to scores, error rates, thresholds and plots
 * inference: embeddings of many utterances and of long files
 * data: from corpora to crops
 * models: the network, its front-end and parts, and its variants
 * files: files that appear when complete, downloads, error lines, checks

What most users need, and each class or function that a YAML file or a model
folder names, is an attribute of this package, so that modules may move. An
attribute is imported when it is first used: ``import redimnet2_lobes`` does not
import torch.

Example
-------
>>> import redimnet2_lobes
>>> sorted(redimnet2_lobes.VARIANTS)
['b0', 'b1', 'b2', 'b3', 'b4', 'b5', 'b6']

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import importlib

__version__ = "0.1.0"

# The module of each attribute.
HOMES = {
    "PassThrough": "models.pass_through",
    "ReDimNet2": "models.redimnet2",
    "LogMel": "models.front_end",
    "TorchaudioLogMel": "models.front_end",
    "fold": "models.folding",
    "keep_freed_memory": "models.tiles",
    "VARIANTS": "models.variants",
    "CheckedAudioNormalizer": "data.audio",
    "Chain": "data.augment",
    "Gain": "data.augment",
    "LowPass": "data.augment",
    "Noise": "data.augment",
    "OneOf": "data.augment",
    "Reverberation": "data.augment",
    "BandLimit": "data.conditions",
    "Codec": "data.conditions",
    "ColouredNoise": "data.conditions",
    "Condition": "data.conditions",
    "Excerpt": "data.conditions",
    "SyntheticRoom": "data.conditions",
    "EpochRandom": "data.crops",
    "RandomCrop": "data.crops",
    "CompleteCheckpointer": "training.checkpointer",
    "AdditiveAngularMarginLoss": "training.losses",
    "SphereFace2": "training.losses",
    "MarginSchedule": "training.schedules",
    "WarmupExponentialSchedule": "training.schedules",
    "WarmupPlateauSchedule": "training.schedules",
    "encode_utterances": "inference.encode",
    "OnlineEncoder": "inference.online",
    "extract_embeddings": "inference.embedding_cache",
    "read_embeddings": "inference.embedding_files",
    "adaptive_s_norm": "scoring.evaluate",
    "evaluate": "scoring.evaluate",
    "bootstrap": "scoring.bootstrap",
    "compare": "scoring.comparison",
    "read_operating_points": "scoring.operating_points",
    "ModelPretrainer": "pretrained.loading",
    "SpeakerRecognition": "pretrained.speaker_recognition",
    "Enrolment": "voices.enrolment",
    "VoiceStore": "voices.store",
    "Voice": "voices.store",
    "Identification": "voices.search",
    "diarize": "voices.diarization",
    "load": "door",
    "space_of": "door",
    "check_same_space": "files.same_space",
    "NoSpeakerClasses": "pretrained.model_folder",
    "build_hparam": "recipe.hparams",
}


def __getattr__(name):
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{HOMES[name]}")
    return getattr(module, name)


def __dir__():
    return sorted([*globals(), *HOMES])
