"""The model card of an encoder that another library trained."""

from collections.abc import Sequence
from typing import Any

from encoder.manifest import Manifest
from export.attempts import BATCH
from export.card import brief

COLUMNS = ("bytes", "ms", "cosine_mean", "cosine_p1", "cosine_min", "overlap")


def foreign_card(manifest: Manifest, name: str) -> str:
    """Markdown, from the manifest alone, which is NAME.json."""
    story, metrics, artifact = manifest.provenance, manifest.metrics, manifest.artifacts[0]
    size = manifest.preprocess.size
    return "\n".join(
        [
            f"# {manifest.model_id}",
            "",
            f"Written by `akin export --from` from `{name}.json`: {manifest.dimension}-d unit embeddings of",
            f"{size}×{size} images, {artifact.precision} ({artifact.quantization}). No probe, hence no labels.",
            "",
            *(["**Random weights, for trying out: the embeddings mean nothing.**", ""] if story["random"] else []),
            "## Made how",
            f"- from: {story['from']} ({story['library']})",
            f"- weights: {story['weights']}",
            *([f"- key map: {story['key map']}"] if story["key map"] else []),
            f"- left out: the classification head; of the weights given: {listed(story['not taken'])}",
            *pixel_lines(story["pixels"], story["pixels of the library"]),
            *([] if story["random"] else ["- data, licence and limits: ask whoever published the weights"]),
            "",
            "## Against fp32",
            f"The same {metrics['fidelity']['images']} images through both graphs; none of them set an int8 range.",
            "Overlap: the share of an image's ten nearest neighbours among the others that both find. ms: one image",
            "on one thread of the machine that exported. The first form within the budget is served.",
            "",
            *attempt_table(metrics["fp32"], metrics["attempts"]),
            *dynamic_note(artifact.quantization),
            "",
        ]
    )


def listed(names: Sequence[str]) -> str:
    """A few of the names, and how many more."""
    return (", ".join(names[:5]) or "nothing") + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def pixel_lines(pixels: dict[str, Any], own: dict[str, Any]) -> list[str]:
    mean, std = (", ".join(f"{value:g}" for value in pixels[key]) for key in ("mean", "std"))
    lines = [f"- pixels: in [0, 1], less mean {mean}, by deviation {std}, inside the graph"]
    if pixels["crop"] < pixels["resize"]:
        lines.append(f"- of {pixels['resize']} pixels a side the graph sees the middle {pixels['crop']}")
    lines.append(
        f"- its library resizes to {own['resize']} pixels ({own['interpolation']}) and crops to {own['crop']}; here: "
        f"{pixels['resize']} (antialiased bilinear) and {pixels['crop']}"
    )
    return lines


def attempt_table(fp32: dict[str, Any], attempts: Sequence[dict[str, Any]]) -> list[str]:
    head = ("form", *(column.replace("_", " ") for column in COLUMNS), "verdict")
    rows = [("fp32, the reference", brief(fp32["bytes"]), brief(fp32["ms"]), "1", "1", "1", "1", "")]
    rows += [
        (
            f"{attempt['kind']}: {attempt['quantization']}",
            *(brief(attempt[column]) if column in attempt else "" for column in COLUMNS),
            attempt["verdict"],
        )
        for attempt in attempts
    ]
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]


def dynamic_note(quantization: str) -> list[str]:
    if not quantization.startswith("dynamic"):
        return []
    return [
        "",
        "Dynamic ranges are those of the batch, on which an image's vector would depend a little: images are served",
        f"one by one. The cosines above are of batches of {BATCH}.",
    ]
