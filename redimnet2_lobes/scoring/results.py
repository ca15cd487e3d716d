"""The results of an evaluation, as the verification scripts write them.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

import math
import os
import sys
from collections.abc import Container, Sequence
from typing import NoReturn

from redimnet2_lobes.files.json_files import read_json
from redimnet2_lobes.files.same_space import KEY
from redimnet2_lobes.scoring.tables import with_interval

RESULTS_FILE = "results.json"  # its name in a model folder
PLAIN_COSINE = "cosine"  # name of the back-end that compares embeddings alone

# What a reader needs, and its types.
NEEDED = {
    "checkpoint": str,
    "seconds_used": float | int | None,
    "crops": int | None,
    "results": list,
}
# And of each entry of ``results``.
ENTRIES = {
    "list": str,
    "back_end": str,
    "trials": int,
    "eer_percent": float,
    "eer_threshold": float,
    "min_dcf_0.01": float,
}
# What has an interval: under its key with this ending there are the two limits,
# null where they are not known; older results have no such keys.
INTERVAL = "_interval"
WITH_INTERVAL = ("eer_percent", "min_dcf_0.01", "min_dcf_0.05", "cllr")
# Those of them that a terminal has room for.
PRINTED_INTERVALS = ("eer_percent", "min_dcf_0.01")
# Of a table of them headings, keys and how figures are written.
COLUMNS = (
    ("list", "list", "{}"),
    ("back-end", "back_end", "{}"),
    ("EER (%)", "eer_percent", "{:.3f}"),
    ("minDCF 0.01", "min_dcf_0.01", "{:.4f}"),
    ("minDCF 0.05", "min_dcf_0.05", "{:.4f}"),
    ("Cllr", "cllr", "{:.4f}"),
    ("minCllr", "min_cllr", "{:.4f}"),
    ("trials", "trials", "{:,}"),
    ("threshold", "eer_threshold", "{:.4f}"),
)


def read_results(path: str | os.PathLike) -> dict:
    """Reads the results.json of a verification script.

    It has ``checkpoint``, ``seconds_used``, ``crops`` (None where whole
    utterances were embedded) and ``results``, a list with an entry for each
    trial list and back-end. It is a ValueError if it is anything else.

    Example
    -------
    >>> path = getfixture("tmp_path") / "results.json"
    >>> _ = path.write_text('{"results": []}')
    >>> read_results(path)["results"]
    Traceback (most recent call last):
    ValueError: ...results.json: not the results of a verification script, \
checkpoint is missing; run the verification again
    """

    def refuse(problem: str) -> NoReturn:
        raise ValueError(
            f"{path}: not the results of a verification script, {problem}; "
            "run the verification again"
        )

    try:
        content = read_json(path)
    except ValueError as error:
        refuse(str(error))
    if not isinstance(content, dict):
        refuse("no JSON object")
    for key, kind in NEEDED.items():
        if key not in content:
            refuse(f"{key} is missing")
        if not isinstance(content[key], kind):
            refuse(f"{key} is {content[key]!r}")
    seconds = content["seconds_used"]
    if content["crops"] is not None and seconds is None:
        refuse("seconds_used of crops is missing")
    if seconds is not None and not 0 < seconds <= sys.float_info.max:
        refuse(f"seconds_used is {seconds!r}")
    if not content["results"]:
        refuse("results is no list with entries")
    if not isinstance(content.get(KEY), str | None):  # older ones have none
        refuse(f"{KEY} is {content[KEY]!r}")
    for row in content["results"]:
        for key, kind in ENTRIES.items():
            value = row.get(key) if isinstance(row, dict) else None
            if not isinstance(value, kind):
                refuse(f"results.{key} is {value!r}")
        for key in WITH_INTERVAL:
            if not _are_limits(row.get(key + INTERVAL)):
                refuse(f"results.{key}{INTERVAL} is {row[key + INTERVAL]!r}")
        if not isinstance(row.get("speakers"), int | None):
            refuse(f"results.speakers is {row['speakers']!r}")
    if not isinstance(content.get("bootstrap_resamples"), int | None):
        refuse(f"bootstrap_resamples is {content['bootstrap_resamples']!r}")
    return content


def _are_limits(value: object) -> bool:
    """Whether a value is that of an interval, which need not be known."""
    if value is None:
        return True
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(limit) in (float, int) for limit in value)
        and -math.inf < value[0] <= value[1] < math.inf  # NaN is not
    )


def results_table(
    rows: list[dict],
    keys: Container[str],
    intervals: Container[str] = WITH_INTERVAL,
) -> list[list[str]]:
    """Cells of a table of ``results``, the headings first.

    Figures have their intervals with them, where these are known and their keys
    are among ``intervals``.

    Example
    -------
    >>> results_table([{"list": "O", "eer_percent": 0.5}], ("eer_percent",))
    [['EER (%)'], ['0.500']]
    """
    columns = [column for column in COLUMNS if column[1] in keys]
    return figures_table(rows, columns, intervals)


def figures_table(
    rows: list[dict],
    columns: Sequence[tuple[str, str, str]],
    intervals: Container[str],
) -> list[list[str]]:
    """As `results_table`, of columns of headings, keys and forms.

    Example
    -------
    >>> rows = [{"list": "O", "far": 2.0, "far_interval": [1.0, 3.0]}]
    >>> columns = [("list", "list", "{}"), ("FAR (%)", "far", "{:.1f}")]
    >>> figures_table(rows, columns, ["far"])
    [['list', 'FAR (%)'], ['O', '2.0 [1.0, 3.0]']]
    """
    table = [[heading for heading, _, _ in columns]]
    for row in rows:
        table.append(
            [
                with_interval(
                    row[key],
                    row.get(key + INTERVAL) if key in intervals else None,
                    form,
                )
                for _, key, form in columns
            ]
        )
    return table


def about_intervals(results: dict) -> str:
    """A sentence on the intervals of results, which is empty for older ones.

    Example
    -------
    >>> row = {"list": "O", "speakers": 40, "eer_percent_interval": [0.3, 0.6]}
    >>> about_intervals({"bootstrap_resamples": 1000, "results": [row]})
    'Intervals: 95 %, 1,000 resamples over 40 speakers.'
    >>> row = {"list": "own", "speakers": None}
    >>> about_intervals({"bootstrap_resamples": 1000, "results": [row]})
    'No intervals of own: names and labels do not tell the speakers of trials.'
    >>> row = {"list": "own", "speakers": 2}
    >>> about_intervals({"bootstrap_resamples": 1000, "results": [row]})
    'No intervals of own: 2 speakers are too few.'
    """
    resamples = results.get("bootstrap_resamples")
    if not resamples:
        return ""
    rows = results["results"]
    speakers = {row["list"]: row.get("speakers") for row in rows}
    shown = {
        row["list"] for row in rows if row.get(WITH_INTERVAL[0] + INTERVAL)
    }
    known = [
        f"{count:,} speakers" + (f" of {name}" if len(speakers) > 1 else "")
        for name, count in speakers.items()
        if name in shown
    ]
    few = [
        f"{name}: {count} speakers"
        for name, count in speakers.items()
        if count is not None and name not in shown
    ]
    unknown = [name for name, count in speakers.items() if count is None]
    sentences = []
    if known:
        sentences.append(
            f"Intervals: 95 %, {resamples:,} resamples over {', '.join(known)}."
        )
    if few:
        sentences.append(f"No intervals of {', '.join(few)} are too few.")
    if unknown:
        sentences.append(
            f"No intervals of {', '.join(unknown)}: names and labels do not "
            "tell the speakers of trials."
        )
    return " ".join(sentences)


def shown_checkpoint(checkpoint: str) -> str:
    """What results call a checkpoint: where it lies is the user's business.

    Example
    -------
    >>> shown_checkpoint("/data/models/b3"), shown_checkpoint("results/b3/")
    ('b3', 'results/b3')
    """
    if os.path.isabs(checkpoint):
        return os.path.basename(os.path.abspath(checkpoint))
    return os.path.normpath(checkpoint)


def embedded_part(results: dict) -> str:
    """What of each utterance was embedded, by `read_results`.

    Example
    -------
    >>> embedded_part({"seconds_used": 4, "crops": 10})
    '10 crops of 4 s, averaged'
    """
    seconds, crops = results["seconds_used"], results["crops"]
    if crops is not None:
        return f"{crops} crops of {seconds:g} s, averaged"
    return "all of it" if seconds is None else f"its first {seconds:g} s"


def in_precision(results: dict) -> str:
    """The end of a sentence on embeddings: their precision, if not float32.

    Results of before precisions have none.

    Example
    -------
    >>> in_precision({"eval_precision": "bf16"}), in_precision({})
    (', in bf16', '')
    """
    precision = results.get("eval_precision", "fp32")
    return "" if precision == "fp32" else f", in {precision}"


def plain_cosine(results: dict) -> list[dict]:
    """The entries for the cosine of embeddings, with nothing else applied.

    Example
    -------
    >>> rows = [{"back_end": "PLDA"}, {"back_end": "cosine", "trials": 2}]
    >>> plain_cosine({"results": rows})
    [{'back_end': 'cosine', 'trials': 2}]
    """
    return [
        row for row in results["results"] if row["back_end"] == PLAIN_COSINE
    ]
