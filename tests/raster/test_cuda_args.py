"""A kernel's structure as Python fills it: every field at its place, whatever came before."""

from __future__ import annotations

import ctypes

import pytest
import torch

from featuresplat.raster._cuda_args import Arguments, structure

STRUCTURES = [
    ("project.cu", "ProjectArgs"), ("tiles.cu", "PairsArgs"), ("tiles.cu", "ListsArgs"), ("sort.cu", "SortArgs"),
    ("blend.cu", "BlendArgs"), ("features.cu", "FeaturesArgs"), ("backward.cuh", "BackwardArgs"),
    ("lift.cuh", "LiftArgs"), ("weigh.cu", "WeighArgs"), ("gather.cu", "GatherArgs"), ("check.cu", "DropArgs"),
]  # fmt: skip


def read(args: Arguments, file: str, name: str) -> ctypes.Structure:
    """What the kernel would be handed: the driver is told where the argument's address stands."""
    return structure(file, name).from_address(ctypes.c_void_p.from_address(args.address).value)


@pytest.mark.parametrize(("file", "name"), STRUCTURES)
def test_every_field_has_its_place(file, name):
    names = [f[0] for f in structure(file, name)._fields_]
    args = Arguments(file, name, {n: i + 1 for i, n in enumerate(names)})
    assert [getattr(read(args, file, name), n) for n in names] == list(range(1, len(names) + 1))
    args.change(**{names[0]: None, names[-1]: 70})
    found = [getattr(read(args, file, name), n) or 0 for n in names]
    assert found == [0, *range(2, len(names)), 70]


def values(**changes) -> dict:
    names = [f[0] for f in structure("check.cu", "CheckArgs")._fields_]
    return dict.fromkeys(names, 0) | changes


def test_tensors_give_their_address_and_nothing_is_null():
    rows = torch.zeros(3)
    args = Arguments("check.cu", "CheckArgs", values(rows=rows, bad=torch.nn.Parameter(rows), only_if=None, n=True))
    got = read(args, "check.cu", "CheckArgs")
    assert (got.rows, got.bad, got.only_if, got.n) == (rows.data_ptr(), rows.data_ptr(), None, 1)  # pyright: ignore
    args.change(rows=None, bad=rows[1:])
    got = read(args, "check.cu", "CheckArgs")
    assert (got.rows, got.bad) == (None, rows.data_ptr() + 4)  # pyright: ignore


def test_fields_that_do_not_match():
    with pytest.raises(TypeError, match=r"CheckArgs: \['more'\]"):
        Arguments("check.cu", "CheckArgs", values(more=1))
    wrong = values(more=1)
    del wrong["n"]
    with pytest.raises(KeyError, match="n"):
        Arguments("check.cu", "CheckArgs", wrong)
    with pytest.raises(KeyError):
        Arguments("check.cu", "CheckArgs", values()).change(more=1)
