"""The model card: what the encoder is, how it came to be, how good it is, and what it is not."""

from typing import Any

from encoder.manifest import Manifest


def model_card(manifest: Manifest) -> str:
    """Markdown, from the manifest alone."""
    story, metrics, precision = manifest.provenance, manifest.metrics, manifest.artifacts[0].precision
    return "\n".join(
        [
            f"# {manifest.model_id}",
            "",
            f"Written by `akin export` from `encoder.json`. ResNet-18, {manifest.dimension}-d unit embeddings of",
            f"{manifest.preprocess.size}×{manifest.preprocess.size} images, {precision} "
            f"({manifest.artifacts[0].quantization}), with a linear probe for {len(manifest.class_names)} classes:",
            f"{', '.join(manifest.class_names)}.",
            "",
            "## Made how",
            *told(story),
            "",
            "## How good",
            "Accuracy in percent on STL-10. Strengths were chosen by cross-validation inside the train labels; the",
            "test split chose nothing.",
            "",
            f"- linear probe, cross-validated inside the 5,000 train labels: {metrics['train_cross_validated']}",
            *test_lines(metrics.get("test")),
            "",
            f"## {precision} against fp32",
            "The same images through both graphs; none of the held-out ones set an int8 range. The probe of the",
            "last two lines is fitted on fp32 vectors and asked about images it has not seen: in the first column",
            "about all train images, by five-fold cross-validation.",
            "",
            *fidelity_table(metrics["fidelity"], metrics.get("test", {}).get("fidelity")),
            "",
            "## Licence and limits",
            "- The probe, and the vectors of gallery.npz, come from STL-10's train split, which derives from",
            "  ImageNet: for research use. For the pretraining images see *data* above.",
            f"- The label is one of {len(manifest.class_names)} classes, also for a picture of something else.",
            "  Confidence is a softmax, not a calibrated probability.",
            "- Not for decisions about people; not examined for bias; not a general-purpose vision encoder.",
            "",
        ]
    )


def told(story: dict[str, Any]) -> list[str]:
    """How weights were made; below it, how those were made that they began with."""
    apart = ("recipe", "begun_with")
    lines = [f"- {key.replace('_', ' ')}: {brief(value)}" for key, value in story.items() if key not in apart]
    if "recipe" in story:
        lines.append("- recipe: " + brief(story["recipe"]))
    if "begun_with" in story:
        lines += ["", "The earlier encoder that it began with:", *told(story["begun_with"])]
    return lines


def test_lines(test: dict[str, Any] | None) -> list[str]:
    if test is None:
        return ["- test split: not measured"]
    rows = [("served int8", test["int8"]), ("random weights", test["random"])]
    return [
        f"- test split, the logits as served: {test['served_logits']} (the probe on fp32: {test['fp32_logits']})",
        "",
        "| test split | linear, all labels | 20-NN | linear, 5% of labels | 20-NN, 5% |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {row['linear']} | {row['knn20']} | {spread(row['linear_5_percent'])} | "
            f"{spread(row['knn20_5_percent'])} |"
            for name, row in rows
        ),
    ]


def fidelity_table(held_out: dict[str, float], test: dict[str, float] | None) -> list[str]:
    columns = {"held-out train": held_out} | ({"test split": test} if test else {})
    return [
        f"| | {' | '.join(columns)} |",
        "|---|" + "---|" * len(columns),
        *(
            f"| {key.replace('_', ' ')} | {' | '.join(brief(column[key]) for column in columns.values())} |"
            for key in held_out
        ),
    ]


def spread(draws: list[float]) -> str:
    return f"{draws[0]} ± {draws[1]}"


def brief(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {brief(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if type(value) is int and value >= 10_000 else str(value)
