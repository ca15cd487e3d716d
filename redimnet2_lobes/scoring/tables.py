"""Tables of results, for a terminal and for a model card.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from collections.abc import Sequence


def text_table(table: list[list[str]], names: int = 2) -> str:
    r"""Sets rows of cells, the headings first, in aligned columns.

    So many columns hold ``names``, and go to the left; the others hold figures.

    Example
    -------
    >>> text_table([["list", "EER (%)"], ["VoxCeleb1-O", "0.5"]], names=1)
    'list         EER (%)\nVoxCeleb1-O      0.5\n'
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    text = ""
    for row in table:
        left = map(str.ljust, row[:names], widths)
        right = map(str.rjust, row[names:], widths[names:])
        text += "  ".join([*left, *right]).rstrip() + "\n"
    return text


def markdown_table(table: list[list[str]], names: int = 2) -> str:
    r"""Sets a table in Markdown; the arguments are those of `text_table`.

    Example
    -------
    >>> markdown_table([["list", "EER (%)"], ["VoxCeleb1-O", "0.5"]], names=1)
    '| list | EER (%) |\n| --- | ---: |\n| VoxCeleb1-O | 0.5 |\n'
    """
    headings, *rows = table
    rules = ["---" if i < names else "---:" for i in range(len(headings))]
    return "".join(
        f"| {' | '.join(cells)} |\n" for cells in (headings, rules, *rows)
    )


def with_interval(
    value: object, limits: Sequence[float] | None, form: str = "{:.2f}"
) -> str:
    """Writes a figure with the limits of its confidence interval, if known.

    Example
    -------
    >>> with_interval(7.472, (5.9, 9.31)), with_interval(7.472, None)
    ('7.47 [5.90, 9.31]', '7.47')
    """
    text = form.format(value)
    if limits is None:
        return text
    low, high = map(form.format, limits)
    return f"{text} [{low}, {high}]"
