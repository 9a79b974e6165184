"""The report of `akin evaluate` as Markdown: a summary and a curve for each place, and what they come from."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

PLACES = {"train": "Inside the train labels", "test": "Test split"}
INSTRUMENTS = {"linear": "linear", "knn20": "20-NN", "prototypes": "prototypes"}
SUMMARY = {
    "linear": "linear, all labels",
    "knn20": "20-NN, all",
    "linear_5_percent": "linear, 5%",
    "knn20_5_percent": "20-NN, 5%",
    "linear_folds": "linear, folds",
    "knn20_folds": "20-NN, folds",
    "finetuned": "fine-tuned, all",
    "finetuned_5_percent": "fine-tuned, 5%",
}
RANDOM = "random weights"
FITTED = {
    "train": (
        "All labels: linear by 5-fold cross-validation, which also chose its strength; 20-NN leaving one out. "
        "On a part of the labels: fitted on the part, asked the other train images."
    ),
    "test": "The same fits, on all train labels or a part of them, asked the test split, which chose nothing.",
}


def markdown(report: Mapping[str, Any]) -> str:
    """report: what training.evaluate.evaluate returns."""
    lines = [
        f"# {report['encoder']} on {report['data']}",
        "",
        "Accuracy in percent; ± is the deviation of the draws.",
    ]
    for result in report["results"]:
        encoders = encoders_of(report["encoder"], result)
        for place, title in PLACES.items():
            if place in result:
                lines += ["", f"## {title}, {result['size']} px", "", FITTED[place], ""]
                lines += summary({name: found[place] for name, found in encoders.items()})
                lines += ["", *curve({name: found[place]["curve"] for name, found in encoders.items()})]
    return "\n".join([*lines, "", "## Where the numbers come from", *provenance(report), ""])


def encoders_of(name: str, result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The rows of a table: the encoder, and random weights beside it unless it is they that are measured."""
    return {name: result, RANDOM: result["random"]} if "random" in result else {RANDOM: result}


def summary(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A row an encoder; columns that no encoder has are left out."""
    columns = {key: title for key, title in SUMMARY.items() if any(key in row for row in rows.values())}
    yield from head("", columns.values())
    for name, row in rows.items():
        yield line(name, [shown(row.get(key)) for key in columns])


def curve(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """A row for each number of labels a class; a column for each encoder and instrument."""
    named = len(rows) > 1  # the title names the encoder
    titles = [
        f"random: {title}" if named and name == RANDOM else title for name in rows for title in INSTRUMENTS.values()
    ]
    yield from head("labels a class", titles)
    for points in zip(*rows.values(), strict=True):
        count = f"{points[0]['labels_a_class']} ({points[0]['draws']} draw{'s' * (points[0]['draws'] > 1)})"
        yield line(count, [shown(point[key], point["draws"]) for point in points for key in INSTRUMENTS])


def provenance(report: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    for result in report["results"]:
        images = [f"{result[f'{place}_images']:,} {place}" for place in PLACES if f"{place}_images" in result]
        yield f"- Data: {report['data']}, {' and '.join(images)} images at {result['size']} px."
    yield (
        "- Strengths are chosen by 5-fold cross-validation inside the labels that are fitted on; below five labels a "
        "class there is one fixed strength. 20-NN weighs votes by exp(cosine / 0.07). Prototypes: nearest class mean."
    )
    if report["fine_tuning_epochs"]:
        yield (
            f"- Fine-tuned for {report['fine_tuning_epochs']} epochs from the probe; inside the train labels the "
            "first of the five folds was asked of what was trained on the others; 5% is three of the ten draws."
        )
    for result in report["results"]:
        for name, found in encoders_of(report["encoder"], result).items():
            frozen = found["frozen"]
            where = f"{result['size']} px, {found['stem']} stem"
            yield f"- Frozen: {name} ({where}): sha256 of its {frozen['of']} before and after, {frozen['sha256']}."
    made = report["made"]
    yield f"- {made['date']}, commit {made['commit'] or 'unknown'}, {made['machine']}, torch {made['torch']}."
    yield f"- `{made['command']}`"


def shown(value: Any, draws: int = 2) -> str:
    """A number, or mean ± deviation of several draws."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1f}"
    mean, deviation = value
    return f"{mean:.1f} ± {deviation:.1f}" if draws > 1 else f"{mean:.1f}"


def head(first: str, columns: Collection[str]) -> Iterator[str]:
    yield line(first, [*columns])
    yield line("---", ["---:"] * len(columns))


def line(first: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join((first, *cells))} |"
