"""Foreign checkpoints: read without pickle's powers, renamed by a key map, and loaded whole or not at all.

A key map is pairs of prefixes, old and new. The first old one that a name begins with gives way to the new one, or
drops the name where that is `-` (in JSON: null): `module.encoder_q.=,module.encoder_k.=-` takes MoCo's query encoder
and not its key encoder.
"""

import argparse
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from export.foreign_error import ForeignError

State = dict[str, Tensor]
KeyMap = Sequence[tuple[str, str | None]]  # old prefix, new prefix or None: dropped
DROP = "-"
SHOWN = 5  # names in a message


def parse_keys(keys: str) -> KeyMap:
    """A key map from `old=new,old=new`, or from the JSON object in the file that `keys` names."""
    if not keys:
        return ()
    if "=" not in keys:
        return _keys_in(Path(keys))
    pairs = [pair.partition("=") for pair in keys.split(",")]
    if unequal := [old for old, sign, _ in pairs if not sign]:
        raise ForeignError(f"--keys has {unequal[0]!r}, which is no old=new; {DROP} as the new one drops")
    return [(old, None if new == DROP else new) for old, _, new in pairs]


def _keys_in(path: Path) -> KeyMap:
    try:
        pairs = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ForeignError(
            f"--keys {path} is neither old=new nor a JSON file that can be read ({error}); give pairs such as "
            "module.encoder_q.="
        ) from error
    if not isinstance(pairs, dict) or not all(new is None or isinstance(new, str) for new in pairs.values()):
        raise ForeignError(f'{path} is no JSON object of prefixes; write {{"old": "new", "dropped": null}}')
    return list(pairs.items())


def read_state(path: Path) -> State:
    """Name -> tensor of a .safetensors file or a torch checkpoint. Where several of a checkpoint's entries hold
    weights, as teacher and student do, their names come first: `teacher.backbone.…`."""
    if not path.is_file():
        raise ForeignError(f"there are no weights at {path}; name a .safetensors file or a torch checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # DINO and MAE keep their arguments in it
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ForeignError(
            f"{path} cannot be read as weights alone ({reason}); save its state_dict with torch.save or safetensors"
        ) from error
    if _is_state(found):
        return dict(found)
    parts = {str(name): part for name, part in found.items() if _is_state(part)} if isinstance(found, dict) else {}
    if not parts:
        raise ForeignError(f"{path} holds no state_dict; save the network's with torch.save")
    if len(parts) == 1:
        return dict(next(iter(parts.values())))
    return {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}


def _is_state(value: Any) -> TypeGuard[Mapping[str, Tensor]]:
    return isinstance(value, Mapping) and len(value) > 0 and all(isinstance(item, Tensor) for item in value.values())


def renamed(state: State, keys: KeyMap) -> tuple[State, list[str]]:
    """The state under its new names, and the old names that the key map drops."""
    kept: State = {}
    dropped = []
    for name, value in state.items():
        old, new = next(((old, new) for old, new in keys if name.startswith(old)), ("", ""))
        if new is None:
            dropped.append(name)
            continue
        fresh = new + name.removeprefix(old)
        if fresh in kept:
            raise ForeignError(f"--keys gives two weights the name {fresh}; drop one of them with its prefix={DROP}")
        kept[fresh] = value
    return kept, dropped


def fill(network: nn.Module, state: State, heads: Sequence[str], told: str) -> list[str]:
    """Load the state, all of it, into the network, which has lost its classification head; `heads` are the names it
    had. Returns what of the state belonged to it. told: what the weights are called in errors."""
    wanted = network.state_dict()
    dropped = [name for name in state if any(name == head or name.startswith(f"{head}.") for head in heads)]
    unknown = [name for name in state if name not in wanted and name not in dropped]
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    if missing or unknown:
        raise ForeignError(f"{told} does not fit: {_misfit(missing, unknown)}")
    for name in wanted.keys() & state.keys():
        if state[name].shape != wanted[name].shape:
            raise ForeignError(
                f"{told}: {name} has the shape {tuple(state[name].shape)}, the network wants "
                f"{tuple(wanted[name].shape)}; name another architecture, or the --size it was trained at"
            )
    network.load_state_dict({name: value for name, value in state.items() if name in wanted}, strict=False)
    return dropped


def _misfit(missing: Sequence[str], unknown: Sequence[str]) -> str:
    said = [f"{what} {_first(names)}" for what, names in (("missing", missing), ("not used", unknown)) if names]
    prefixes = (name.removesuffix(missing[0]) for name in unknown if missing and name.endswith(f".{missing[0]}"))
    if prefix := next(prefixes, ""):
        way_out = f"try --keys {prefix}="
    elif missing:
        way_out = "rename with --keys old=new, or name the architecture that it is of"
    else:
        way_out = f"drop what is not the encoder's with --keys {unknown[0].partition('.')[0]}={DROP}"
    return f"{'; '.join(said)}. {way_out[0].upper()}{way_out[1:]}"


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
