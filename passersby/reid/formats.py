"""Files of re-identification networks: each kind as a configuration and tensors, before any network is built.

Our own `.safetensors`; the state dicts (`net_last.pth`) of Zheng's Person_reID_baseline_pytorch, here "layumi", with
ResNet backbones; the checkpoints (`model.pth.tar-60`, `osnet_x1_0_msmt17.pth`) of Zhou's deep-person-reid, here
"torchreid": resnet18, resnet34, resnet50, resnet50_fc512, and every OSNet; those of JDAI's fast-reid (`model_best.pth`,
`market_sbs_R50-ibn.pth`), "fastreid": bag of tricks, AGW and SBS with ResNet-50 and ResNet-50-IBN; those of Luo's
reid-strong-baseline, "bot": ResNets and ResNet-50-IBN; those of He's TransReID, "transreid": the ViTs without cameras,
overlap and local branches. Nothing that a file contains is ever executed.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch

from passersby.checkpoints import REID, Tensors, read_own, read_tensors
from passersby.errors import InputError
from passersby.reid import osnet
from passersby.reid.network import ACTIVATIONS, BASIC, BLOCKS, BOTTLENECK, IBN_NETS, NON_LOCAL, ReidConfig
from passersby.reid.timm_backbone import PREFIX

IMAGENET_CLASSES = 1000
HALF = (0.5, 0.5, 0.5)  # mean and deviation of TransReID's images
PATCH = 16  # [pixels], both sides, of TransReID's ViTs
# Values of an embedding, blocks, hidden values of a block -> the network of timm with the same structure.
_VITS: dict[tuple[int, ...], str] = {
    (768, 12, 3072): f"{PREFIX}vit_base_patch16_224",
    (384, 12, 1536): f"{PREFIX}vit_small_patch16_224",
}
_TORCHREID_PREFIXES = {"classifier.": "classifier.", "fc.0.": "embed.", "fc.1.": "norm.", "": "backbone."}


@dataclasses.dataclass(frozen=True)
class Contents:
    """The contents of a file, before any network is built; `tensors` have ReidNetwork's names."""

    kind: str  # "passersby" | "layumi" | "torchreid" | "fastreid" | "bot" | "transreid"
    config: ReidConfig
    tensors: Tensors
    class_names: tuple[str, ...]  # empty if the file does not store them
    record: dict[str, Any]
    notes: tuple[str, ...]


def read_passersby(path: Path) -> Contents:
    """A file of ours. Raises InputError for a file of another program, a damaged file, or a newer version."""
    tensors, metadata = read_own(path, REID)
    config, names = metadata["config"], metadata["class_names"]
    if not all(isinstance(name, str) for name in names) or len(names) != config.get("classes"):
        raise InputError(f"its {len(names)} class names are not those of {str(config.get('classes'))[:20]} classes")
    return Contents("passersby", _config(config), tensors, tuple(names), metadata["record"], ())


def read_foreign(path: Path, activation: str | None, last_stride: int | None) -> Contents:
    """A file of another program, known by its tensors' names; `activation` and `last_stride` as for `load_reid`."""
    tensors = read_tensors(path)
    if "backbone.conv1.weight" in tensors and any(name.startswith("heads.") for name in tensors):
        return _fastreid(tensors, last_stride)
    if "base.conv1.weight" in tensors:
        return _bot(tensors, last_stride)
    if "base.patch_embed.proj.weight" in tensors:
        return _transreid(tensors)
    if "model.conv1.weight" in tensors and "classifier.classifier.0.weight" in tensors:
        return _layumi(tensors, path, activation, last_stride)
    if "conv1.weight" in tensors and "classifier.weight" in tensors:
        return _torchreid(tensors, activation, last_stride)
    if osnet.is_osnet(tensors):
        return _torchreid_osnet(tensors, activation)
    if "conv1.weight" in tensors and "fc.weight" in tensors:
        raise InputError("ImageNet weights, no re-identification network: training takes them with --weights")
    listed = ", ".join(name[:40] for name in list(tensors)[:3])
    raise InputError(
        f"neither layumi's ResNet-50 nor torchreid's resnet ({listed}, ...) nor its osnet, nor fast-reid's, BoT's or "
        "TransReID's: those are read, and our own"
    )


def _layumi(tensors: Tensors, path: Path, activation: str | None, last_stride: int | None) -> Contents:
    options, notes = _options(path.with_name("opts.yaml"))
    # The ImageNet classifier stays in their files, unused.
    needed = {name: value for name, value in tensors.items() if not name.startswith("model.fc.")}
    prefixes = {
        "model.": "backbone.",
        "classifier.add_block.0.": "embed.",
        "classifier.add_block.1.": "norm.",
        "classifier.classifier.0.": "classifier.",
    }
    if needed.get("classifier.add_block.0.weight", torch.empty(0)).ndim != 2:
        raise InputError("it was trained without its linear layer (linear_num 0), which is not read")
    if activation is None:
        notes.append("no activation after its batch normalisation, as in its published code: the file does not say it")
    stride = options.get("stride", 2) if last_stride is None else last_stride
    if last_stride is None and "stride" not in options:
        notes.append("last stride 2, its default: the file does not say it")
    renamed = _renamed(needed, prefixes)
    config = ReidConfig(
        classes=_rows(renamed, "classifier.weight"),
        backbone=_backbone_name(renamed),
        embedding=_rows(renamed, "embed.weight"),
        activation=activation or "none",
        last_stride=stride,
        dropout=options.get("droprate", 0.5),
    )
    return Contents("layumi", config, renamed, (), {"trained_on": "unknown"}, tuple(notes))


def _torchreid(tensors: Tensors, activation: str | None, last_stride: int | None) -> Contents:
    renamed = _renamed(tensors, _TORCHREID_PREFIXES)
    embedding = "embed.weight" in renamed
    if embedding and activation not in (None, "relu"):
        raise InputError(f"activation {activation}: torchreid's resnet50_fc512 has relu")
    stride = (1 if embedding else 2) if last_stride is None else last_stride
    config = ReidConfig(
        classes=_rows(renamed, "classifier.weight"),
        backbone=_backbone_name(renamed),
        neck="embedding" if embedding else "none",
        embedding=_rows(renamed, "embed.weight") if embedding else ReidConfig.embedding,
        last_stride=stride,
        dropout=0.0,
    )
    model = f"{config.backbone}_fc{config.embedding}" if embedding else config.backbone
    notes = (f"taken for torchreid's {model}, whose last stride is {stride}: the file does not say it",)
    return Contents("torchreid", config, renamed, (), {"trained_on": "unknown"}, notes if last_stride is None else ())


def _torchreid_osnet(tensors: Tensors, activation: str | None) -> Contents:
    if activation not in (None, "relu"):
        raise InputError(f"activation {activation}: torchreid's osnet has relu")
    name, renamed = read_osnet(tensors)
    config = ReidConfig(
        classes=_rows(renamed, "classifier.weight"),
        backbone=name,
        embedding=_rows(renamed, "embed.weight"),
        last_stride=1,  # its last stage keeps the size: 2 is refused as what the file does not have
        dropout=0.0,
    )
    notes = [f"torchreid's {name} of {config.classes:,} classes"]
    if config.classes == IMAGENET_CLASSES:
        notes.append("1,000 classes: if they are ImageNet's, it has not learnt people yet: train with --weights FILE")
    return Contents("torchreid", config, renamed, (), {"trained_on": "unknown"}, tuple(notes))


def _fastreid(tensors: Tensors, last_stride: int | None) -> Contents:
    """fast-reid's Baseline with an EmbeddingHead: BoT, AGW and SBS (its configs/Base-*.yml)."""
    prefixes = {f"backbone.NL_{name[-1]}.": f"backbone.{name}.non_local." for name in NON_LOCAL}
    prefixes |= {"backbone.": "backbone.", "heads.pool_layer.p": "backbone.avgpool.p"}
    # Older versions had other names for the head's parts.
    prefixes |= {f"heads.{name}.": "norm." for name in ("bottleneck.0", "bottleneck", "bnneck")}
    prefixes |= {f"heads.{name}": "classifier.weight" for name in ("weight", "classifier.weight")}
    if tensors.get("heads.bottleneck.0.weight", torch.empty(0)).ndim == 4:
        raise InputError(
            "fast-reid's with an embedding before its batch normalisation (EMBEDDING_DIM), which is not read"
        )
    pixels = {name: tensors.pop(f"pixel_{name}").flatten().tolist() for name in ("mean", "std")
              if f"pixel_{name}" in tensors}  # fmt: skip
    renamed = _renamed(tensors, prefixes)
    non_local = any(".non_local." in name for name in renamed)
    gem = non_local or "backbone.avgpool.p" in renamed
    recipe = "SBS" if "backbone.avgpool.p" in renamed else "AGW" if gem else "BoT"
    if gem:  # AGW's exponent is fixed, and so not in its files
        renamed.setdefault("backbone.avgpool.p", torch.full((1,), 3.0))
    config = ReidConfig(
        classes=_rows(renamed, "classifier.weight"),
        backbone=_backbone_name(renamed),
        neck="bnneck",
        height=384 if recipe == "SBS" else 256,
        last_stride=last_stride or 1,
        stem="fastreid",
        pooling="gem" if gem else "average",
        non_local=non_local,
    )
    if len(pixels) == 2:
        mean, deviation = (tuple(round(value / 255, 6) for value in values) for values in pixels.values())
        config = dataclasses.replace(config, mean=mean, deviation=deviation)
    note = (
        f"taken for fast-reid's {recipe} with {config.backbone}: images of {config.height} x {config.width}, last "
        f"stride {config.last_stride}, the feature after the batch normalisation: the file does not say it"
    )
    return Contents("fastreid", config, renamed, (), {"trained_on": "unknown"}, (note,))


def _bot(tensors: Tensors, last_stride: int | None) -> Contents:
    """reid-strong-baseline's Baseline (and TransReID's ResNet-50), with or without its BNNeck."""
    needed = {name: value for name, value in tensors.items() if not name.startswith("base.fc.")}
    renamed = _renamed(needed, {"base.": "backbone.", "bottleneck.": "norm.", "classifier.": "classifier."})
    backbone = _backbone_name(renamed)
    config = ReidConfig(
        classes=_rows(renamed, "classifier.weight"),
        backbone=backbone,
        neck="bnneck" if "norm.weight" in renamed else "none",
        last_stride=last_stride or 1,
        # Its own ResNet has no ReLU after the first convolution; its ResNet-50-IBN has one.
        stem="imagenet" if backbone in IBN_NETS else "bot",
    )
    after = ", the feature after the batch normalisation" if config.neck == "bnneck" else ""
    note = f"taken for BoT's {backbone}: last stride {config.last_stride}{after}: the file does not say it"
    return Contents("bot", config, renamed, (), {"trained_on": "unknown"}, (note,))


def _transreid(tensors: Tensors) -> Contents:
    """TransReID's ViT or DeiT as timm has it; the published recipes compare features before the batch normalisation."""
    for name, part in (
        ("base.sie_embed", "embeddings of cameras or views (SIE)"),
        ("b1.0.norm1.weight", "local branches (JPM)"),
    ):
        if name in tensors:
            raise InputError(f"TransReID's with {part}: timm's ViT has none, so only files without them are read")
    needed = {name: value for name, value in tensors.items() if not name.startswith("base.fc.")}
    renamed = _renamed(needed, {"base.": "backbone.", "bottleneck.": "norm.", "classifier.": "classifier."})
    blocks = len({name.split(".")[2] for name in renamed if name.startswith("backbone.blocks.")})
    hidden = renamed.get("backbone.blocks.0.mlp.fc1.weight", torch.empty(0)).shape[:1]
    positions = renamed.get("backbone.pos_embed", torch.empty(0)).shape
    structure = (*positions[2:], blocks, *hidden)
    if structure not in _VITS:
        raise InputError(f"TransReID's ViT with {structure} (values, blocks, hidden values): timm has the structures "
                         f"{', '.join(map(str, _VITS))}")  # fmt: skip
    # TransReID's images of people are 128 wide; then the number of patches says how high they are.
    columns = 128 // PATCH
    if (positions[1] - 1) % columns:
        raise InputError(f"TransReID's ViT with {positions[1] - 1} patches: those of overlapping patches (STRIDE_SIZE "
                         f"below {PATCH}) are not read, since timm's patches do not overlap")  # fmt: skip
    rows = (positions[1] - 1) // columns
    config = ReidConfig(
        classes=_rows(renamed, "classifier.weight"),
        backbone=_VITS[structure],
        neck="bnneck",
        height=rows * PATCH,
        last_stride=1,
        neck_feature="before",
        mean=HALF,
        deviation=HALF,
    )
    note = (
        f"taken for TransReID's {config.backbone.removeprefix(PREFIX)}: images of {config.height} x {config.width}, "
        "the feature before the batch normalisation, as in its recipes: the file does not say it"
    )
    return Contents("transreid", config, renamed, (), {"trained_on": "unknown"}, (note,))


def read_osnet(tensors: Tensors) -> tuple[str, Tensors]:
    """The backbone's name, and the tensors of torchreid's OSNet under ReidNetwork's names."""
    ours = osnet.our_names(tensors)
    name = osnet.variant_name(ours)
    if name is None:
        raise InputError(f"an OSNet of another structure: those of {', '.join(osnet.OSNETS)} are read")
    return name, _renamed(ours, _TORCHREID_PREFIXES)


def _renamed(tensors: Tensors, prefixes: Mapping[str, str]) -> Tensors:
    # The first prefix that fits is replaced. A name without such a prefix stays: building the network refuses it.
    renamed = {}
    for name, value in tensors.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        renamed[name if prefix is None else prefixes[prefix] + name.removeprefix(prefix)] = value
    return renamed


def _rows(tensors: Tensors, name: str) -> int:
    if name not in tensors or tensors[name].ndim != 2:
        raise InputError(f"tensor {name} is missing or no matrix: the file is damaged")
    return tensors[name].shape[0]


def _backbone_name(tensors: Tensors) -> str:
    places = [name.split(".") for name in tensors if name.startswith("backbone.layer")]
    counts = [len({p[2] for p in places if p[1] == f"layer{i}" and p[2] != "non_local"}) for i in range(1, 5)]
    kind = BOTTLENECK if "backbone.layer1.0.conv3.weight" in tensors else BASIC
    ibn = any(name.endswith(".bn1.IN.weight") for name in tensors)
    for name, stages in BLOCKS.items():
        if stages == (kind, counts) and (name in IBN_NETS) == ibn:
            return name
    raise InputError(f"its backbone has {counts} {kind} blocks: those of {', '.join(BLOCKS)} are read")


def _options(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The options of the structure in layumi's opts.yaml, and notes."""
    if not path.is_file():
        return {}, []
    try:
        import yaml
    except ModuleNotFoundError:
        return {}, [f"{path.name} beside it was not read: pip install pyyaml"]
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path.name} beside it cannot be read ({reason}): mend it or move it away") from error
    content = content if isinstance(content, dict) else {}
    options = {name: content[name] for name in ("stride", "droprate") if name in content}
    if any(type(value) not in (int, float) for value in options.values()):
        raise InputError(f"{path.name} beside it says {str(options)[:80]}, where numbers are needed")
    return options, [f"{path.name} beside it says {', '.join(f'{k} {v}' for k, v in options.items()) or 'nothing'}"]


def _config(values: dict[str, Any]) -> ReidConfig:
    fields = get_type_hints(ReidConfig)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, value in values.items():
        if name not in fields:
            raise InputError(f"its configuration has {name[:40]!r}, which this version does not know")
        kind = get_origin(fields[name]) or fields[name]
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise InputError(f"its configuration's {name} is {str(value)[:40]!r}, no {kind.__name__}")
    if "classes" not in values:
        raise InputError("its configuration lacks the classes: the file is damaged")
    return ReidConfig(**values)


def check_activation(activation: str | None) -> None:
    """InputError for an activation that no network has."""
    if activation is not None and activation not in ACTIVATIONS:
        raise InputError(f"activation {activation!r}: take one of {', '.join(ACTIVATIONS)}")
