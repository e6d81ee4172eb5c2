"""State dicts of the library transformers, as the published dense and digits program writes them, under timm's keys.

ViT, DeiT, BEiT, DINOv2, Swin and ResNet of transformers compute what timm's models of these names compute; the keys
differ, and transformers keeps query, key and value apart. Source of both layouts: transformers 4.44.2, timm 1.0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from dec_export.reference.weights.files import Weights
from dec_export.reference.weights.layout import Checkpoint, Layout, Pretrained

# The wrapper of the classical canonicalizer puts its own `model.` before the published class's.
_PREFIXES = ("model.model.", "model.")
_BLOCK = r"encoder\.layer\.(\d{1,4})\."
_SWIN_BLOCK = r"encoder\.layers\.(\d)\.blocks\.(\d{1,4})\."
_RESNET_LAYER = r"encoder\.stages\.(\d)\.layers\.(\d{1,4})\."
_Name = str | Callable[[re.Match[str]], str]

# The rules that all transformers share below their block, from their end of a key to timm's.
_IN_BLOCK = {
    r"attention\.output\.dense": "attn.proj",
    r"intermediate\.dense": "mlp.fc1",
    r"output\.dense": "mlp.fc2",
    r"layernorm_before": "norm1",
    r"layernorm_after": "norm2",
}
_IN_TOKEN_BLOCK = {
    **_IN_BLOCK,
    r"norm([12])": r"norm\2",
    r"mlp\.fc([12])": r"mlp.fc\2",
    r"layer_scale([12])\.lambda1": r"ls\2.gamma",
    r"lambda_([12])": r"gamma_\2",
    r"attention\.attention\.relative_position_bias\.relative_position_bias_table": "attn.relative_position_bias_table",
}
_IN_SWIN_BLOCK = {
    **_IN_BLOCK,
    r"attention\.self\.relative_position_bias_table": "attn.relative_position_bias_table",
}
_END = r"(\.weight|\.bias|)"


def _raised(pattern: str) -> _Name:
    """Return a replacement whose `{}` are the pattern's first number, counted from one instead of from zero."""
    return lambda match: match.expand(pattern.replace("{}", str(int(match[1]) + 1)))


def _norms(module: str, convolution: str, norm: str) -> dict[str, str]:
    return {
        rf"{module}\.convolution\.(weight)": rf"{convolution}.\3",
        rf"{module}\.normalization\.(\w+)": rf"{norm}.\3",
    }


# Each key of transformers, without the program's prefix, and its key in timm.
_RULES: dict[str, _Name] = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.distillation_token": "reg_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection\.(weight|bias)": r"patch_embed.proj.\1",
    r"embeddings\.norm\.(weight|bias)": r"patch_embed.norm.\1",
    r"layernorm\.(weight|bias)": r"norm.\1",
    r"pooler\.layernorm\.(weight|bias)": r"fc_norm.\1",
    **{
        _BLOCK + key + _END: rf"blocks.\1.{name}" + (r"\3" if "(" in key else r"\2")
        for key, name in _IN_TOKEN_BLOCK.items()
    },
    **{_SWIN_BLOCK + key + _END: rf"layers.\1.blocks.\2.{name}\3" for key, name in _IN_SWIN_BLOCK.items()},
    r"encoder\.layers\.(\d)\.downsample\.(\S+)": _raised(r"layers.{}.downsample.\2"),
    r"embedder\.embedder\.convolution\.(weight)": r"conv1.\1",
    r"embedder\.embedder\.normalization\.(\w+)": r"bn1.\1",
    **{
        _RESNET_LAYER + key: _raised(r"layer{}.\2." + name)
        for key, name in _norms("shortcut", "downsample.0", "downsample.1").items()
    },
    **{
        _RESNET_LAYER + key: _raised(r"layer{}.\2." + name)
        for n in range(3)
        for key, name in _norms(rf"layer\.{n}", f"conv{n + 1}", f"bn{n + 1}").items()
    },
}
_COMPILED = [(re.compile(pattern), name) for pattern, name in _RULES.items()]
_ATTENTION = re.compile(
    rf"(?:{_BLOCK}attention\.attention|{_SWIN_BLOCK}attention\.self)\.(query|key|value)\.(weight|bias)"
)
# Parts that the published program never uses, or that timm computes.
_UNUSED = re.compile(r"pooler\.dense\.|embeddings\.mask_token|.*relative_position_index")
# The classifier's key for each kind of model, by a key that only models of the kind have.
_CLASSIFIERS = {"embedder.": "fc", "encoder.layers.": "head.fc", "encoder.layer.": "head"}
_CLASSIFIER = re.compile(r"classifier\.(?:1\.)?(weight|bias)")


@dataclass
class _Translation:
    """The weights found so far under timm's keys, the file's key of each, and the counts of unused tensors.

    attention: for each block, the file's keys of query, key and value, as "query.weight".
    """

    weights: Weights = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    attention: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, key: str, name: str, weights: Weights) -> None:
        self.weights[name], self.names[name] = weights[key], key


def _recognise(checkpoint: Checkpoint) -> bool:
    return prefix_of(checkpoint.state) is not None


def prefix_of(weights: Mapping[str, object]) -> str | None:
    """Return the prefix of a backbone's keys in the layout of transformers; None when there is no such backbone."""
    starts = [f"{prefix}{part}" for prefix in _PREFIXES for part in ("embeddings.", "embedder.")]
    return next(
        (start.rsplit(".", 2)[0] + "." for start in starts if any(key.startswith(start) for key in weights)), None
    )


def _read(checkpoint: Checkpoint) -> Pretrained:
    """Return the backbone with its classifier or head, and the weights of a classical canonicalizer below `DEM.`.

    A key that no rule knows stays as it is, so that the comparison with the model names it.
    """
    weights, found = checkpoint.state, _Translation()
    prefix = prefix_of(weights) or ""
    outer = prefix.removesuffix("model.")  # of the published class inside its wrapper
    for key in weights:
        _translate(key, prefix, outer, weights, found)
    for block, parts in found.attention.items():
        _fuse(block, parts, weights, found)
    return Pretrained("transformers", found.weights, found.dropped, names=found.names)


def _translate(key: str, prefix: str, outer: str, weights: Weights, found: _Translation) -> None:
    inner = key.removeprefix(prefix)
    if match := _CLASSIFIER.fullmatch(key.removeprefix(outer)):
        found.add(key, f"{_classifier(weights, prefix)}.{match[1]}", weights)
    elif not key.startswith(prefix):
        name = key.removeprefix(outer)
        canonicalizer = outer and not key.startswith(outer)
        found.add(key, f"DEM.{name}" if canonicalizer else name, weights)
    elif match := _ATTENTION.fullmatch(inner):
        block = f"blocks.{match[1]}" if match[1] else f"layers.{match[2]}.blocks.{match[3]}"
        found.attention.setdefault(block, {})[f"{match[4]}.{match[5]}"] = key
        found.names[f"{block}.attn.qkv.{match[5]}"] = key.replace(f".{match[4]}.", ".{query,key,value}.")
    elif match := _UNUSED.match(inner):
        found.dropped[".".join(inner.split(".")[:2])] += 1
    else:
        found.add(key, _timm_key(inner) or key, weights)


def _timm_key(key: str) -> str | None:
    for pattern, name in _COMPILED:
        if match := pattern.fullmatch(key):
            return name(match) if callable(name) else match.expand(name)
    return None


def _classifier(weights: Weights, prefix: str) -> str:
    kinds = (name for part, name in _CLASSIFIERS.items() if any(key.startswith(prefix + part) for key in weights))
    return next(kinds, "head")


def _fuse(block: str, parts: Mapping[str, str], weights: Weights, found: _Translation) -> None:
    """Put query, key and value of a block into one matrix, as timm has them; BEiT has no bias of its keys."""
    for kind in ("weight", "bias"):
        keys = [parts[name] for part in ("query", "key", "value") if (name := f"{part}.{kind}") in parts]
        if len(keys) == 3 and len({weights[key].shape for key in keys}) == 1:
            found.weights[f"{block}.attn.qkv.{kind}"] = torch.cat([weights[key] for key in keys])
        elif kind == "bias" and "key.bias" not in parts:
            for key in keys:
                found.add(key, f"{block}.attn.{'q' if '.query.' in key else 'v'}_bias", weights)
        else:  # a part is missing, or has another shape: the comparison with the model names it
            found.weights |= {key: weights[key] for key in keys}


TRANSFORMERS = Layout(
    "keys that start with 'model.embeddings.' or 'model.embedder.' (the published code on transformers)",
    _recognise,
    _read,
    is_plain=True,
)
