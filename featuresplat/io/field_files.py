"""What a field keeps beside its codes, and codes that are mostly zero: two safetensors files a field.

``NAME.decoder.safetensors`` holds the decoder. ``NAME.field.safetensors`` holds what there is of ``confidence`` [N],
``text`` [P, F] with the phrases in its header, and for a codebook ``entries`` [N, top] and ``weights`` [N, top] in
place of columns in the PLY.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featuresplat.decoders import CodebookDecoder, decoder_from, decoder_metadata
from featuresplat.errors import FeaturesplatError
from featuresplat.io.tensors import read_tensors
from featuresplat.types import FeatureField, TextTable

Content = tuple[dict[str, Tensor], dict[str, str]]


def field_files(name: str, field: FeatureField) -> dict[str, Content]:
    """Tensors and header by file name: what has to be written beside the PLY for this field."""
    files: dict[str, Content] = {}
    if field.decoder is not None:
        tensors = {k: v.detach() for k, v in field.decoder.state_dict().items()}
        files[f"{name}.decoder.safetensors"] = (tensors, decoder_metadata(field.decoder, field.teacher))
    tensors, header = {}, {}
    if field.confidence is not None:
        tensors["confidence"] = field.confidence.float()
    if field.text is not None:
        tensors["text"] = field.text.vectors.float()
        header["phrases"] = json.dumps(list(field.text.phrases))
    sparse = sparse_codes(field)
    if sparse is not None:
        tensors["entries"], tensors["weights"] = sparse
    if tensors:
        files[f"{name}.field.safetensors"] = (tensors, header)
    return files


def sparse_codes(field: FeatureField) -> tuple[Tensor, Tensor] | None:
    """The entries and weights [N, top] of a codebook's codes; None when these are not as sparse as it says."""
    decoder = field.decoder
    if not isinstance(decoder, CodebookDecoder) or decoder.top >= field.dim:
        return None
    codes = field.codes.detach().cpu().float()
    if int((codes != 0).sum(1).max()) > decoder.top:
        return None
    entries = codes.abs().topk(decoder.top, dim=1).indices
    weights = codes.gather(1, entries)
    half = weights.half()
    weights = half if torch.equal(half.float(), weights) else weights
    return entries.to(torch.uint8 if field.dim <= 256 else torch.int32), weights


def dense_codes(tensors: Mapping[str, Tensor], dim: int, origin: str) -> Tensor:
    """[N, D] from what `sparse_codes` gave."""
    entries, weights = tensors["entries"].long(), tensors["weights"].float()
    if entries.ndim != 2 or entries.shape != weights.shape or (len(entries) and int(entries.max()) >= dim):
        raise FeaturesplatError(f"{origin}: its entries do not fit a codebook of {dim}.", "Distill the field again.")
    return torch.zeros(len(entries), dim).scatter_(1, entries, weights)


def read_field(codes: Tensor | None, entry: Mapping[str, Any], decoder: Path | None, sidecar: Path | None, count: int):
    """The field of an entry of scene.json; ``codes`` None means that they are in the sidecar.

    Raises:
        FeaturesplatError: a file is damaged, or does not fit the N Gaussians.
    """
    tensors, header = read_tensors(sidecar) if sidecar is not None else ({}, {})
    origin = str(sidecar)
    if codes is None:
        if "entries" not in tensors or "weights" not in tensors:
            raise FeaturesplatError(f"{origin}: holds no codes, but scene.json says so.", "Distill the field again.")
        codes = dense_codes(tensors, int(entry["dim"]), origin)
        if len(codes) != count:
            raise FeaturesplatError(
                f"{origin}: has codes of {len(codes)} Gaussians, the scene has {count}.", "Distill the field again."
            )
    text = None
    if "text" in tensors:
        text = TextTable(tuple(str(p) for p in json.loads(header["phrases"])), tensors["text"])
    return FeatureField(
        codes,
        str(entry["teacher"]),
        decoder_from(*read_tensors(decoder), str(decoder)) if decoder is not None else None,
        tensors.get("confidence"),
        text,
        dict(entry.get("info", {})),
    )


def bundle(fields: Mapping[str, FeatureField]) -> tuple[Tensor | None, Content]:
    """The codes of all fields side by side [N, sum of D], and all else of them as one file's tensors and header.

    What an exported PLY is accompanied by; `unbundle` is the way back.
    """
    columns: list[Tensor] = []
    places: dict[int, int] = {}
    entries: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    width = 0
    for name, field in fields.items():
        offset = places.setdefault(id(field.codes), width)
        if offset == width:
            columns.append(field.codes.detach().cpu().float())
            width += field.dim
        entry: dict[str, Any] = {"name": name, "dim": field.dim, "offset": offset, "teacher": field.teacher}
        entry["info"] = dict(field.info)
        if field.decoder is not None:
            entry["decoder"] = decoder_metadata(field.decoder, field.teacher)
            tensors |= {f"{name}/decoder/{k}": v.detach() for k, v in field.decoder.state_dict().items()}
        if field.confidence is not None:
            tensors[f"{name}/confidence"] = field.confidence.float()
        if field.text is not None:
            entry["phrases"] = list(field.text.phrases)
            tensors[f"{name}/text"] = field.text.vectors.float()
        entries.append(entry)
    codes = torch.cat(columns, dim=1) if columns else None
    return codes, (tensors, {"fields": json.dumps(entries)})


def unbundle(codes: Tensor, content: Content, origin: str) -> dict[str, FeatureField]:
    """The fields of a PLY's feature columns [N, D] and of the file beside it; ``origin`` names that in errors.

    Raises:
        FeaturesplatError: the file is not of this PLY.
    """
    tensors, header = content
    fields: dict[str, FeatureField] = {}
    shared: dict[tuple[int, int], Tensor] = {}
    try:
        for entry in json.loads(header["fields"]):
            name, first, dim = str(entry["name"]), int(entry["offset"]), int(entry["dim"])
            if first < 0 or dim < 1 or first + dim > codes.shape[1]:
                raise ValueError(f"columns {first} to {first + dim - 1} of {codes.shape[1]}")
            own = shared.setdefault((first, dim), codes[:, first : first + dim].contiguous())
            start = f"{name}/decoder/"
            weights = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            decoder = decoder_from(weights, entry["decoder"], origin) if "decoder" in entry else None
            text = TextTable(tuple(entry["phrases"]), tensors[f"{name}/text"]) if "phrases" in entry else None
            confidence = tensors.get(f"{name}/confidence")
            fields[name] = FeatureField(own, str(entry["teacher"]), decoder, confidence, text, dict(entry["info"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FeaturesplatError(
            f"{origin}: does not fit the PLY beside it ({type(error).__name__}: {error}).", "Export both again."
        ) from error
    return fields
