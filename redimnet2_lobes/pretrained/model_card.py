"""Model cards: what the hub shows of a model.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from redimnet2_lobes.models.embedding_space import embedding_space
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.pretrained.standalone import FILE_NAME
from redimnet2_lobes.scoring.operating_point import (
    OperatingPoint,
    operating_point_in,
)
from redimnet2_lobes.scoring.results import (
    ENTRIES,
    about_intervals,
    embedded_part,
    in_precision,
    results_table,
)
from redimnet2_lobes.scoring.tables import markdown_table

PAPER = "2603.11841"  # arXiv
TAGS = (
    *("speechbrain", "embeddings", "speaker-verification"),
    *("speaker-recognition", "speaker-identification", "ReDimNet2"),
    f"arxiv:{PAPER}",
)
CARD = """\
# {title}

Speaker embeddings by [ReDimNet2](https://arxiv.org/abs/{paper}) for
[SpeechBrain](https://speechbrain.github.io), 16 kHz input.

| | |
|---|---|
| variant | {variant} |
| parameters | {parameters:,} |
| embedding | {embedding_size} dimensions, compared by cosine |
| embedding space | {space} |
| speaker classes | {classes} |
| training data | {training_data} |
| licence | {license} |

## Usage

With the package `redimnet2_lobes` installed (its repository says how):

```python
from redimnet2_lobes import SpeakerRecognition

model = SpeakerRecognition.from_hparams(source="{repository}")
score, same_speaker = model.verify_files("a.wav", "b.wav")
embeddings = model.encode_batch(wavs, wav_lens)  # [batch, 1, {embedding_size}]
```

`wavs` are waveforms at 16 kHz [batch, time], `wav_lens` their lengths relative
to the longest; padding changes no embedding. `same_speaker` goes by
{threshold}; `verify_files` takes another as `threshold`.

On the command line:

    redimnet2 verify a.wav b.wav --model={repository}

With SpeechBrain (1.1) alone, `{file_name}` of this repository stands in for the
package. This runs code from the repository, as `from_hparams` with the package
does not:

```python
from speechbrain.inference.interfaces import foreign_class

model = foreign_class(
    source="{repository}",
    pymodule_file="{file_name}",
    classname="SpeakerRecognition",
)
```

## Results

{results}

## Citation

```bibtex
@inproceedings{{yakovlev2026redimnet2,
  title = {{ReDimNet2: Scaling Speaker Verification via Time-Pooled Dimension
           Reshaping}},
  author = {{Yakovlev and Okhotnikov}},
  booktitle = {{Interspeech}},
  year = {{2026}},
  note = {{arXiv:{paper}}},
}}
```

Please cite SpeechBrain as well (https://speechbrain.github.io).
"""


def write_model_card(
    repository: str,
    network: ReDimNet2,
    variant: str | None,
    speakers: int | None,
    results: dict | None,
    license: str,
    training_data: str | None,
    datasets: list[str],
) -> ModelCard:
    """Writes the card of a model, as ``str`` the README.md.

    Arguments
    ---------
    repository
        Its name USER/NAME on the hub.
    network
    variant
        b0 to b6, or None.
    speakers
        Number of speaker classes; None for none.
    results
        From ``read_results``; None where nothing was evaluated.
    license
        The hub's name of the licence, such as apache-2.0.
    training_data, datasets
        What it was trained on, in words and as the hub's names.

    Example
    -------
    >>> from redimnet2_lobes.models.front_end import LogMel
    >>> stage = dict(blocks=1, expansion=1, reduction=8)
    >>> stages = [dict(frequency_stride=2, time_stride=2, **stage)]
    >>> network = ReDimNet2(LogMel(), 4, stages)
    >>> card = write_model_card(
    ...     "user/name", network, None, None, None, "mit", None, []
    ... )
    >>> card.data.license
    'mit'
    >>> "Not evaluated" in card.text
    True
    """
    title = "ReDimNet2" if variant is None else f"ReDimNet2-{variant.upper()}"
    data = ModelCardData(
        library_name="speechbrain",
        license=license,
        tags=list(TAGS),
        datasets=datasets or None,
        metrics=["eer"] if results else None,
        pipeline_tag="audio-classification",
        model_name=repository.split("/")[1],
        eval_results=_eval_results(results) if results else None,
    )
    point = operating_point_in(results) if results else OperatingPoint()
    text = CARD.format(
        title=title,
        paper=PAPER,
        variant=variant or "an architecture of its own",
        parameters=sum(weight.numel() for weight in network.parameters()),
        embedding_size=network.projection.out_features,
        space=embedding_space(network),
        classes="none" if speakers is None else f"{speakers:,}",
        training_data=training_data or "not stated",
        license=license,
        repository=repository,
        threshold=(
            "SpeechBrain's default threshold, 0.25"
            if point.value is None
            else f"the threshold {point.value:.4f} ({point.origin})"
        ),
        file_name=FILE_NAME,
        results=_results(results) if results else "Not evaluated.",
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _eval_results(results: dict) -> list[EvalResult]:
    """The hub's form of the error rates."""
    return [
        EvalResult(
            task_type="audio-classification",
            task_name="Speaker verification",
            dataset_type=row["list"],
            dataset_name=f"{row['list']}, {row['back_end']}",
            metric_type="eer",
            metric_name="EER (%)",
            metric_value=round(row["eer_percent"], 4),
        )
        for row in results["results"]
    ]


def _results(results: dict) -> str:
    """The table, and what it was measured on."""
    table = markdown_table(results_table(results["results"], ENTRIES))
    intervals = about_intervals(results)
    return (
        f"{table}\n"
        "Measured by whoever pushed this model, with the verification scripts "
        "of the\nrecipe; of each utterance "
        f"{embedded_part(results)} was embedded{in_precision(results)}. "
        "minDCF is normalized, the threshold\nthat of the EER."
        f"{intervals and ' ' + intervals}"
    )
