"""How fprop and dgrad ship: with which fusions their tiles are compiled to be checked offline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from genimg.kernels.triton.aot import Compile, signature_of
from genimg.kernels.triton.conv.tile_sizes import TMA, Tile, by_descriptors, shipped
from genimg.kernels.triton.conv.tma import box_constants, box_of

PLAIN = ("none", "bias")
FORWARD = ("affine_leaky", "statistics")
BACKWARD = ("two_tensor", "gate")
LAST = ("affine_leaky", "tanh")
FIRST = ("none", "gate")
"""Prologue and epilogue: of a lone convolution, of an inner layer's forward and backward, of a last
layer's."""

_MAPS = (512, (16, 16))
"""Images of so many pixels, where descriptors want a box of each."""
K4S2P1: dict[str, Any] = {
    **{"KH": 4, "KW": 4, "STRIDE_H": 2, "STRIDE_W": 2, "PAD_H": 1, "PAD_W": 1},
    **{"DILATION_H": 1, "DILATION_W": 1, "FOLDED": False},
}


def compiles(
    name: str,
    kernel: Any,
    fusions: tuple[tuple[str, str], ...],
    constants: dict[str, Any],
    aligned: tuple[str, ...],
    columns: int = 0,
    weight_block: str = "",
    gathers: bool = False,
) -> Iterator[Compile]:
    """``kernel`` in every shipped tile and with each of ``fusions``.

    ``constants`` are its own beside the geometry's; ``columns`` takes but the tiles for no more.
    ``weight_block`` names the axes of a weight's block: then in every tile by descriptors, too.
    ``gathers`` takes the tiles for few channels instead.
    """
    for entry in shipped():
        tiles = entry.tiles
        for tile in tiles.image_few if gathers else (*tiles.image, *tiles.image_more):
            if columns and columns < tile.n:
                continue
            for prologue, epilogue in fusions:
                yield _compile(
                    f"{name} {tile} {tile.warps} {prologue} {epilogue} {entry.precision}",
                    kernel,
                    tile,
                    {**K4S2P1, **constants, "PROLOGUE": prologue, "PRECISION": entry.precision},
                    epilogue,
                    aligned,
                    (entry.dtypes, entry.capabilities),
                )
    for tile, capability in by_descriptors() if weight_block else ():
        block = [1, *(getattr(tile, axis) for axis in weight_block)]
        for prologue, epilogue in fusions:
            # One tile as a stack launches it, else only where all is asked for.
            typical = tile == TMA[capability][0] and prologue != "none"
            made = _compile(
                f"{name} {tile} {prologue} {epilogue}",
                kernel,
                tile,
                {**K4S2P1, **constants, "PROLOGUE": prologue, "PRECISION": "ieee"},
                epilogue,
                aligned,
                (("fp16", "bf16"), (capability,)),
                block,
            )
            yield replace(made, only_all=not typical)


def _why_narrow(constexprs: dict[str, Any], tile: Tile, dtypes: tuple[str, ...]) -> str:
    if constexprs.get("FEW"):
        return "pixels of few channels are gathered"
    if dtypes == ("fp32",):
        return "operands are turned on their way into shared memory, value by value"
    if tile.k * tile.n * 2 < 16 * 32 * tile.warps or tile.k * tile.m * 2 < 16 * 32 * tile.warps:
        return "a thread has fewer than 16 bytes of an operand"
    return ""


def _compile(
    name: str,
    kernel: Any,
    tile: Tile,
    constants: dict[str, Any],
    epilogue: str,
    aligned: tuple[str, ...],
    ships_for: tuple[tuple[str, ...], tuple[int, ...]],
    weight_block: list[int] | None = None,
) -> Compile:
    gates, measures = epilogue == "gate", epilogue == "statistics"
    types: dict[str, str | None] = {
        "x_ptr": "*T",
        "y_ptr": "*T" if constants["PROLOGUE"] == "two_tensor" else None,
        "x_coef_ptr": None if constants["PROLOGUE"] == "none" else "*fp32",
        "weight_ptr": "*T",
        "bias_ptr": None if gates or measures else "*T",
        "out_ptr": "*T",
        "gate_ptr": "*T" if gates else None,
        "gate_coef_ptr": "*fp32" if gates else None,
        "partial_ptr": "*fp32" if gates or measures else None,
    }
    box = box_of(tile.m, *_MAPS) if weight_block else None
    if box:
        image = f"tensordesc<T{[box.images, box.height, 1, box.width, tile.k]}>"
        types["x_ptr"], types["weight_ptr"] = image, f"tensordesc<T{weight_block}>"
        types["y_ptr"] = types["y_ptr"] and image
    types = {argument: kind for argument, kind in types.items() if argument in kernel.arg_names}
    constexprs = {
        **constants,
        **{argument: None for argument, kind in types.items() if kind is None},
        **tile.blocks(),
        **box_constants(box),
        "RAGGED": False,
        "ACTIVATION": "tanh" if epilogue == "tanh" else "none",
        "STATISTICS": measures,
        "GATE": "affine" if gates else "none",
    }
    constexprs = {key: value for key, value in constexprs.items() if key in kernel.arg_names}
    pointers = {argument: kind for argument, kind in types.items() if kind is not None}
    # One value a column is no vector of them.
    wide = tuple(name for name, kind in pointers.items() if kind[0] == "*" and name != "bias_ptr")
    floats = {"x_slope": "fp32", "slope": "fp32"}
    return Compile(
        kernel,
        name,
        signature_of(kernel, {**pointers, **floats}, constexprs),
        constexprs,
        tile.options(),
        (*wide, *aligned),
        True,
        _why_narrow(constexprs, tile, ships_for[0]),
        *ships_for,
    )
