"""Tables, JSON and picture of a benchmark."""

import json
import os
import statistics

from matplotlib.figure import Figure

from redimnet2_lobes.scoring.tables import markdown_table, text_table

# Relative to the largest value of an embedding.
LARGEST_DIFFERENCE = 1e-5


def agrees(difference):
    return difference <= LARGEST_DIFFERENCE


def marked(difference):
    return f"{difference:.0e}" + ("" if agrees(difference) else " !")


def milliseconds(seconds):
    return f"{1000 * seconds:.1f}"


# Heading, key of the row, and how its figure is written.
COLUMNS = (
    ("variant", "variant", str),
    ("implementation", "implementation", str),
    ("time (ms)", "median_s", milliseconds),
    ("speed ratio", "speed_ratio", "{:.2f}".format),
    ("beside, median (ms)", "busy_s", milliseconds),
    ("beside, worst (ms)", "worst_s", milliseconds),
    ("worst / alone", "worst_ratio", "{:.1f}".format),
    ("real-time factor", "real_time_factor", "{:.4f}".format),
    ("memory (MiB)", "peak_memory_mib", "{:.0f}".format),
    ("memory ratio", "memory_ratio", "{:.2f}".format),
    ("share of peak", "share_of_peak", "{:.0%}".format),
    ("difference", "difference", marked),
    ("smallest cosine", "smallest_cosine", "{:.5f}".format),
)
COLOURS = {
    "published": "tab:gray",
    "ours": "tab:blue",
    "ours, torch": "tab:cyan",
    "ours, compiled": "tab:green",
    "published, compiled": "tab:orange",
    "ours, bfloat16": "tab:purple",
    "ours, with lengths": "tab:olive",
}


def write_report(report, folder):
    """Writes all files and prints the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    text = describe(report, text_table)
    print(text)
    markdown = describe(report, markdown_table)
    figures = json.dumps(report, indent=2) + "\n"
    figure = draw(report)
    for name, write in (
        ("table.txt", lambda path: path.write_text(text + "\n")),
        ("table.md", lambda path: path.write_text(markdown + "\n")),
        ("results.json", lambda path: path.write_text(figures)),
        (
            "benchmark.png",
            lambda path: figure.savefig(path, format="png", dpi=150),
        ),
    ):
        # Under its name a file is complete.
        partial = folder / f"{name}.part"
        write(partial)
        os.replace(partial, folder / name)


def describe(report, table):
    """All tables and what stands around them; ``table`` sets one table."""
    paragraphs = [machine_line(report)]
    for case in report["cases"]:
        paragraphs.append(case["title"])
        if not case["measured"]:
            paragraphs.append(
                "not measured: this processor has no bfloat16 instructions"
            )
        elif not case["rows"]:
            paragraphs.append("not measured: every process failed")
        else:
            paragraphs.append(table(cells(case["rows"])).rstrip("\n"))
            paragraphs += means(case) + warnings(case)
    if report["machine"]["accelerator"] is None:
        paragraphs.append("accelerator: not measured (none on this machine)")
    return "\n\n".join(paragraphs)


def machine_line(report):
    machine = report["machine"]
    device = f"{machine['processor']}, {machine['cores']} cores"
    if machine["device"] == "cuda":
        device = f"{machine['accelerator']} ({device})"
    rates = ", ".join(
        f"{rate / 1e9:,.0f} GFLOP/s in {name}"
        for name, rate in report["peak_operations_per_second"].items()
    )
    return (
        f"{device}; threads: {machine['threads']}; torch {machine['torch']}; "
        f"{machine['date']}; commit {machine['commit'] or 'unknown'}; "
        f"matrix products: {rates or 'not measured'}"
    )


def cells(rows):
    """Headings and rows of a table, without columns that hold nothing."""
    columns = [
        column
        for column in COLUMNS
        if any(row[column[1]] is not None for row in rows)
    ]
    table = [[heading for heading, _, _ in columns]]
    for row in rows:
        table.append(
            [
                "-" if row[key] is None else write(row[key])
                for _, key, write in columns
            ]
        )
    return table


def means(case):
    """A line of geometric means over the variants for each implementation."""
    lines = []
    for name in dict.fromkeys(row["implementation"] for row in case["rows"]):
        parts = []
        for key, what in (
            ("speed_ratio", "speed"),
            ("memory_ratio", "memory"),
        ):
            ratios = [row[key] for row in rows_with(case, key, name)]
            if ratios:
                mean = statistics.geometric_mean(ratios)
                parts.append(f"{what} ratio {mean:.2f}")
        if parts:
            lines.append(f"{name}, geometric mean: {', '.join(parts)}")
    return lines


def warnings(case):
    if all(
        row["difference"] is None or agrees(row["difference"])
        for row in case["rows"]
    ):
        return []
    return [
        f"! embeddings differ by more than {LARGEST_DIFFERENCE:.0e} of the "
        "largest value"
    ]


def rows_with(case, key, name):
    return [
        row
        for row in case["rows"]
        if row["implementation"] == name and row[key] is not None
    ]


def draw(report):
    """A panel of bars for each case, and one for memory in training."""
    panels = [panel for case in report["cases"] for panel in panels_of(case)]
    rows = max(len(panels), 1)
    figure = Figure(figsize=(11, 2.6 * rows), layout="constrained")
    for axes, panel in zip(
        figure.subplots(rows, squeeze=False)[:, 0],
        panels,
        strict=False,
    ):
        draw_panel(axes, *panel)
    return figure


def panels_of(case):
    """Title, axis label, key of the figures, and case of each panel."""
    if not case["rows"]:
        return
    title, reference = case["title"], case["reference"]
    if any(row["speed_ratio"] for row in case["rows"]):
        yield title, f"speed ratio to {reference}", "speed_ratio", case
    else:
        # Nothing to compare with.
        yield title, "real-time factor", "real_time_factor", case
    if any(row["worst_ratio"] for row in case["rows"]):
        title = f"{title}: worst process / alone, less is better"
        yield title, "worst / alone", "worst_ratio", case
    if case["training"] and any(row["memory_ratio"] for row in case["rows"]):
        title = f"{title}: peak memory, less is better"
        yield title, f"memory ratio to {reference}", "memory_ratio", case


def draw_panel(axes, title, figure_name, key, case):
    variants = list(
        dict.fromkeys(row["variant"] for row in case["rows"] if row["variant"])
    )
    names = [
        name
        for name in COLOURS
        if any(row["variant"] for row in rows_with(case, key, name))
    ]
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        found = rows_with(case, key, name)
        bars = axes.bar(
            [
                variants.index(row["variant"])
                + (i - (len(names) - 1) / 2) * width
                for row in found
            ],
            [row[key] for row in found],
            0.9 * width,
            color=COLOURS[name],
            label=name,
        )
        digits = "{:.2g}" if key == "real_time_factor" else "{:.2f}"
        # On white, for the line may run through a label.
        labels = axes.bar_label(bars, fmt=digits, fontsize=7, padding=2)
        for label in labels:
            label.set_bbox({"color": "white", "pad": 0.5})
    if key != "real_time_factor":
        axes.axhline(1, color="0.2", linewidth=1, linestyle="--")
    axes.set_xticks(range(len(variants)), [name.upper() for name in variants])
    axes.set_xlim(-0.6, len(variants) - 0.4)
    axes.margins(y=0.15)
    axes.set_ylabel(figure_name)
    axes.set_title(title, fontsize=10)
    axes.legend(
        fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False
    )
