"""Look at an encoder:  akin map --weights runs/NAME/checkpoint.pt --data data --out runs/NAME/map

Reads   STL-10 or CIFAR-10, whose labels give the colours, and an encoder as `akin evaluate` does: a run's
        checkpoint, a .safetensors of export, `random`, or with --onnx the int8 artifact that is served
Writes  tsne.png: embeddings of the test split in the plane, coloured by class
        neighbors.png: test images drawn by lot, beside the train images that the encoder finds most alike

Both show the test split, so they are for looking: choose by what `akin evaluate` measures inside the train labels.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.manifold import TSNE

from encoder.session import Encoder
from images.sources import open_source
from training import knobs
from training.backbone import Stem
from training.checkpoint import load_backbone
from training.features import Embed, embed_images, torch_embedder
from training.labelled import Split, read_split
from training.machine import pick_device
from training.watch import evenly

# Okabe and Ito's colours, which people with any kind of colour vision tell apart, and two more; markers help.
HUES = ("#0072b2", "#e69f00", "#d55e00", "#56b4e9", "#7b3294", "#000000", "#009e73", "#cc79a7", "#8c8c8c", "#a6761d")
MARKERS = "osD^vP"
SAME, OTHER = "#009e73", "#d55e00"


@dataclass(frozen=True)
class Map:
    data: str = "data"  # a folder with STL-10 or CIFAR-10
    weights: str = "model_store/encoder.safetensors"  # checkpoint.pt, encoder.safetensors, or random
    onnx: str = ""  # a model store: look at the artifact that is served from it, at its own size
    size: int = 64  # side of the images, in pixels
    stem: Stem = "small"  # of random weights
    out: str = "runs/map"  # folder for the pictures
    points: int = 2000  # test images on the map, every class as often
    perplexity: float = 30.0  # of t-SNE: about how many neighbours a point tries to stay near to
    queries: int = 10  # rows of the sheet of neighbours, every class in turn
    neighbors: int = 8  # train images beside each
    seed: int = 0  # of the map and of the draw of the queries

    def __post_init__(self) -> None:
        at_least = {"size": 1, "points": 10, "perplexity": 1, "queries": 1, "neighbors": 1, "seed": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)} is too little; give at least {least}")


class Nearest(NamedTuple):
    """The nearest gallery rows of each query, nearest first."""

    rows: np.ndarray  # (Q, k) int64
    scores: np.ndarray  # (Q, k) float32, cosine similarities


def plane(vectors: np.ndarray, perplexity: float, seed: int) -> np.ndarray:
    """(N, 2) float32: t-SNE (van der Maaten and Hinton 2008) of (N, D) unit vectors. Of few points the perplexity
    is lowered to a third of their number."""
    if float(vectors.std(axis=0).max()) < 1e-6:
        raise SystemExit(f"all {len(vectors)} embeddings are the same, so there is no map; the encoder has collapsed")
    perplexity = min(perplexity, (len(vectors) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)


def draw_map(points: np.ndarray, labels: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """points: (N, 2); labels: (N,) indices into names. A class's name stands at the median of its points."""
    width, height = np.ptp(points, axis=0)
    figure = Figure(figsize=(11, 0.5 + 9.5 * float(np.clip(height / width, 0.5, 1.2))), layout="constrained")
    axis = figure.subplots()
    for label, name in enumerate(names):
        own = points[labels == label]
        if not len(own):
            continue
        color, marker = HUES[label % len(HUES)], MARKERS[label % len(MARKERS)]
        axis.scatter(own[:, 0], own[:, 1], s=22, color=color, marker=marker, alpha=0.8, linewidths=0, label=name)
        axis.annotate(
            name,
            np.median(own, axis=0),
            ha="center",
            va="center",
            fontsize="large",
            weight="bold",
            path_effects=[patheffects.withStroke(linewidth=4, foreground="white")],
        )
    axis.set(title=title, xticks=[], yticks=[])
    axis.set_aspect("equal", adjustable="datalim")
    axis.spines[:].set_visible(False)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.6, fontsize="large", frameon=False)
    return figure


def nearest(gallery: np.ndarray, queries: np.ndarray, count: int) -> Nearest:
    """gallery: (N, D), queries: (Q, D) unit vectors. At most `count` of the gallery for each query."""
    similarity = queries @ gallery.T
    rows = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return Nearest(rows, np.take_along_axis(similarity, rows, axis=1))


def draw_lots(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` rows drawn by lot, the classes in turn: what the sheet shows has not been picked."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    rows = shuffled[evenly(labels[shuffled], count)]
    return rows[np.argsort(labels[rows], kind="stable")]


def draw_sheet(queries: Split, gallery: Split, found: Nearest, names: Sequence[str], title: str) -> Figure:
    """A query a line; behind it what was found for it, with the cosine, framed by whether its class is the
    query's. In the axis's units a picture is 1 wide and high and a line is 1.3 high."""
    lines, columns = len(queries.images), found.rows.shape[1]
    width, height = 1.1 * columns + 1.5, 1.3 * lines + 0.5
    figure = Figure(figsize=(1.1 * width, 1.1 * height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(-0.1, width - 0.1), ylim=(height - 0.5, -0.5))
    axis.set_axis_off()
    axis.text(0, -0.25, title, fontsize="large", va="center")

    def place(image: np.ndarray, left: float, top: float, color: str, caption: str) -> None:
        axis.imshow(image, extent=(left, left + 1, top + 1, top), interpolation="bicubic", aspect="auto")
        axis.add_patch(Rectangle((left, top), 1, 1, fill=False, edgecolor=color, linewidth=3.5))
        axis.text(left + 0.5, top + 1.04, caption, ha="center", va="top", fontsize=9, color=color)

    for line in range(lines):
        place(queries.images[line], 0, 1.3 * line, "black", names[queries.labels[line]])
        for column, (row, score) in enumerate(zip(found.rows[line], found.scores[line], strict=True)):
            same = gallery.labels[row] == queries.labels[line]
            caption = f"{score:.2f}" if same else f"{score:.2f} {names[gallery.labels[row]]}"
            place(gallery.images[row], 1.3 + 1.1 * column, 1.3 * line, SAME if same else OTHER, caption)
    axis.set(xlim=(-0.1, width - 0.1), ylim=(height - 0.5, -0.5))  # imshow has moved them
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    config = knobs.parse(Map(), argv, "akin map", (__doc__ or "").splitlines()[0])
    embed: Embed
    if config.onnx:
        served = Encoder.load(Path(config.onnx))
        embed = lambda batch: served.embed(batch).vectors  # noqa: E731
        name, size = served.manifest.model_id, served.manifest.preprocess.size
    else:
        embed = torch_embedder(load_backbone(config.weights, config.stem), pick_device("auto"))
        name, size = config.weights, config.size
    data, out = Path(config.data), Path(config.out)
    train, test = read_split(data, "train", size), read_split(data, "test", size)
    names = open_source(data, "test").class_names
    out.mkdir(parents=True, exist_ok=True)

    shown = evenly(test.labels, config.points)
    points = plane(embed_images(embed, test.images[shown]), config.perplexity, config.seed)
    title = f"t-SNE of {len(shown)} test images by {name}"
    draw_map(points, test.labels[shown], names, title).savefig(out / "tsne.png", dpi=110)
    print(out / "tsne.png", flush=True)

    asked = draw_lots(test.labels, config.queries, config.seed)
    queries = Split(test.images[asked], test.labels[asked])
    gallery = embed_images(embed, train.images)
    found = nearest(gallery, embed_images(embed, queries.images), config.neighbors)
    alike = int((train.labels[found.rows] == queries.labels[:, None]).sum())
    title = f"nearest of {len(gallery)} train images by {name}: {alike} of {found.rows.size} share the query's class"
    draw_sheet(queries, train, found, names, title).savefig(out / "neighbors.png", dpi=110)
    print(out / "neighbors.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
