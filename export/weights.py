"""encoder.safetensors: the backbone's weights as fp16 and the probe, the source of every artifact."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from training.backbone import Backbone


def half_precision(backbone: Backbone) -> Backbone:
    """The backbone with its weights rounded to fp16 and held in fp32: what the file can give back."""
    with torch.no_grad():
        for value in [*backbone.parameters(), *backbone.buffers()]:
            if value.is_floating_point():
                value.copy_(value.half().float())
    return backbone


def write_weights(path: Path, backbone: Backbone, probe: nn.Linear) -> None:
    """Deterministic: the same weights give the same bytes, hence the same model digest."""
    state = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    state |= {f"probe.{name}": value for name, value in probe.state_dict().items()}
    tensors = {
        name: (value.half() if name.startswith("backbone.") else value).contiguous()
        for name, value in state.items()
        if value.is_floating_point()
    }
    kind: dict[str, str] = {"stem": backbone.stem}
    if backbone.norm != "batch":  # what older files leave out
        kind["norm"] = backbone.norm
    save_file(tensors, path, metadata=kind)
