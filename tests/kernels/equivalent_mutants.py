"""Mutants that no result can tell from the original, and why.

A rule that covers no mutant is stale, and an error; ``check_mutants.py --equivalent`` tries those
that rules cover, and names the ones that a case finds all the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from machines import Machine
from mutants import Mutant


@dataclass(frozen=True)
class Rule:
    """Mutants by function and by a pattern of ``site -> change: code``, and the reason.

    ``levels``: the reason holds at these instruction-set levels alone; ``one_thread``: only there.
    """

    function: str
    pattern: str
    reason: str
    levels: tuple[str, ...] = ()
    one_thread: bool = False

    def covers(self, mutant: Mutant, machine: Machine | None) -> bool:
        """Whether it is the reason for a mutant on a machine; None is any."""
        if machine and self.levels and machine.isa not in self.levels:
            return False
        if machine and self.one_thread and machine.threads > 1:
            return False
        text = f"{mutant.site} -> {mutant.change}: {mutant.code}"
        named = re.fullmatch(self.function, mutant.function)
        return bool(named and re.search(self.pattern, text))


def _same(function: str, reason: str, *patterns: str, **where: Any) -> list[Rule]:
    return [Rule(function, pattern, reason, **where) for pattern in patterns]


RULES = (
    # conv/tiles.h
    *_same(
        "winograd_(up|down)",
        "a variant of no tiles has no blocks, and a tile of no outputs writes none",
        r"^axis.count == 0 -> false",
        r"^wanted == 0 -> false",
    ),
    *_same(
        "winograd_up",
        "find_patch knows the patch's size from the transform",
        r"axis.patch = size \+ 2",
    ),
    *_same(
        "winograd_(up|down)",
        "of a patch only in_at[0] is read: the others follow it",
        r"^i < axis -> one step less: .*axis.in_at",
    ),
    *_same(
        "winograd_(up|down)",
        "products are left out for speed: they are 0, or of outputs that are not wanted",
        r"^wanted == size -> true: output_phase.products",
        r"^odd -> false",
        r"^wanted == 1 && -> 0: (if|const bool)",
        r"^size == 3\) -> 4: if",
        r"^m == 1; -> 2: const bool even_is_zero",
        r"^!even_is_zero -> true",
    ),
    *_same(
        "winograd_down",
        "a second output_phase has no products",
        r"^output_phases = 1; -> 2: axis.output_phases = 1",
    ),
    *_same("floor_mod", "only whether it is 0 is asked", r"^\) \+ b -> a - b"),
    *_same("direct_up", "a phase beyond the axis has no tiles", r"^phase < large -> true"),
    *_same(
        "Tiling::splits",
        "how many units share the work, which gives the same results in any number",
        r"32, larger|smaller\(wanted, panels",
    ),
    *_same(
        "Tiling::max_values",
        "room for more values than there are, or for the first pass's, which has most",
        r"most = 1; -> ",
    ),
    *_same(
        "Tiling::max_values|conv_wgrad_plan",
        "the room of scratch for one pass of several; what is written past it is for make sanitize "
        "to find",
        r"^larger\(most, .* -> second argument: most",
        r"^pass = 0; -> 1: for",
    ),
    *_same(
        "tiling_of",
        "one product is its own inverse transform, whatever the size",
        r"^form == ConvAlgorithm::winograd_f3x2 -> true: t.size",
        r"^3 : 1; -> [02]: t.size",
    ),
    *_same(
        "Axis::all_outputs",
        "there is no second output_phase, or it has as many outputs as the first",
        r"^output_phases == 2 -> true",
        r"^output_phase\[1\] -> 0",
    ),
    *_same("im2col_down", "how many values there is room for", r"^axes\[0\] -> 1"),
    # leaky.h
    *_same(
        "Leaky::operator\\(\\)",
        "of single pixels, whose gate is the value: 0 is 0 on either side, and the rest is finite",
        r"^relu -> false: if \(relu\) return gate <= 0 \?",
        r"^gate (<= 0 -> a < b|> 0 -> a >= b): ",
    ),
    # conv/load.h
    *_same(
        "find_patch",
        "a whole tile that is taken for none is masked by ones",
        r"^first_[hw] >= 0 -> a > b",
        r"^first_[hw] >= 0 && -> 1",
        r"^kSide <= t -> a < b",
    ),
    *_same(
        "find_patch",
        "a mask that is wrong in its last bit changes half an ulp, or 0 to a denormal number",
        r"\? -1 : -> 2: patch->inside",
        r": 0; -> 1: patch->inside",
    ),
    *_same("masked", "0 is added or taken", r"^mask - Mask -> "),
    *_same(
        "over_vectors|load_winograd_tile|load_position",
        "a whole vector is read as well in the way of partial ones",
        r"kWidth <= channels -> one step less",
        r"^count < kWidth -> (true|a <= b)",
        r"^patch.whole -> false",
        r"^count == kWidth -> false",
    ),
    *_same(
        "over_vectors",
        "what lies in a block beyond the depth is not multiplied, or not stored",
        r"^larger\(channels - c, 0\) -> first",
        r"larger\(channels - c, 0\)\)\);$",
    ),
    *_same(
        "blocked",
        "a vector is a block: c is a multiple of it",
        r"kBlock \+ c -> a - b",
        levels=("avx512",),
    ),
    *_same(
        "load_copied_tile",
        "where a position outside would lie is not read",
        r"^inside -> true: const int64_t at",
        r": 0; -> 1: const int64_t at",
    ),
    *_same(
        "copy_run",
        "neighbours that are not copied by fours are copied one by one",
        r"i \+ 4 <= -> 5",
        r"^4 <= count -> one step less",
    ),
    *_same(
        "load_im2col_tile",
        "more is cleared than need be, before the taps are copied",
        r"^top >= 0 -> a > b: const bool whole",
        r"^top >= 0 && -> 1: const bool whole",
        r"^whole -> false",
        r"^smaller\(count, h.patch \* run / kWidth \* kWidth\) -> second",
        r"\* (run|kWidth) -> a: const int64_t cleared",
        r"^patch <= t -> a < b: const bool whole",
    ),
    *_same(
        "load_im2col_tile",
        "a vector is four: at most twelve of sixteen taps or more are left as they are",
        r"^run / kWidth -> a % b: const int64_t cleared",
        levels=("baseline",),
    ),
    *_same("load_im2col_tile", "a run of no columns copies none", r"^begin < end -> true"),
    # conv/store.h
    *_same(
        "tanh_of|sigmoid_of",
        "both sides are the same number there",
        r"^x < 0 -> a <= b",
        r"^x < -|^x < - -> a <= b",
        r"> kTanhEnd -> a >= b",
        r"> kSigmoidEnd -> a >= b",
    ),
    *_same(
        "(Plain|Gate)Store::operator\\(\\)",
        "sums of what is stored, or of what it was before rounding: half an ulp apart; and what a "
        "float is stored as is itself",
        r"sizeof\(T\) == 2",
    ),
    *_same(
        "GateStore::operator\\(\\)|Contraction::store_as|Col2imContraction::store_as|moments_about",
        "whole vectors go as well in the way of partial ones, and channels beyond "
        "the count are added up for nobody",
        r"^kFull -> (true|false)",
        r"^count == kWidth -> false",
        r"const Vector d = \(count == kWidth",
    ),
    *_same(
        "finish_axis",
        "a value that no output takes",
        r"^kProducts == 3 -> true",
        r"^kProducts == 4 -> true",
    ),
    *_same(
        "finish_vector",
        "no more outputs are made than wanted: the last tile has products for its own alone",
        r"^[ij] >= inverse(.outputs_[hw])? -> (false|a > b)",
    ),
    *_same(
        "with_products|finish_output_phase",
        "what is stored by too small a transform is stored over by the right one",
        r"^products == [123] -> true",
        r"^inverse.size == [12] -> true",
    ),
    # conv/contraction.h
    *_same(
        "Contraction::run",
        "a panel is made twice, or one that there is not: it has no columns",
        r"split \+ 1\) -> 2|\. split \+ 1\) -> 2|split \+ 1 \) -> 2",
        r"split / splits -> a % b: for",
    ),
    *_same(
        "Contraction::(run|run_panels|multiply_output_phase)",
        "one panel is made at a time: kPanelsAtOnce is 1",
        r"^smaller\(panel \+ kPanelsAtOnce, last\) -> ",
        r"\(panel - begin\)",
    ),
    *_same(
        "Contraction::run",
        "every split has the same count of values",
        r"^unit.split == 0 -> true",
    ),
    *_same(
        "Contraction::run_panels",
        "one panel is made at a time: local is 0",
        r"^first \+ local -> a - b",
        r"^second \+ local -> a - b",
    ),
    *_same(
        "Contraction::store_vector",
        "sums that nobody asks for are not read",
        r"^call.epilogue.counts -> true",
    ),
    *_same(
        "Contraction::take_moments",
        "channels beyond the count are not read",
        r"^smaller\(kWidth, columns - v\) -> first",
        r"^columns - v -> a \+ b",
    ),
    *_same(
        "PlainStore::operator\\(\\)|Contraction::take_moments",
        "a pivot near the mean serves as well as the mean: what is left of it is less than an ulp",
        r"^first \+= -> =|^first \+= (sizeof|load_first) -> =",
        r"about\[i\] \+ rest",
        r"n \* rest \* rest",
    ),
    # conv/col2im.h
    *_same(
        "Col2imContraction::.*",
        "a vector is a block of channels: v and channel are 0, and a block has one",
        r"^(c|first|second|v|kBlock|channel|,|tap) \+ (v|channel|i) -> a - b: .*\b(v|channel)\b",
        r"^kColumnTaps \+ tap -> a - b",
        r"smaller\(kWidth, count - v\)",
        r"kWidth == kBlock -> true",
        levels=("avx512",),
    ),
    *_same(
        "Col2imContraction::multiply_channels",
        "for the prefetch alone",
        r"const int64_t next =",
        r"row < next",
        r"const T\* ahead",
    ),
    *_same(
        "Col2imContraction::run",
        "take_moments stores over the sums of a plain epilogue",
        r"^(first|second) \+ v -> a - b: store_as<PlainStore>",
    ),
    *_same(
        "Col2imContraction::multiply_channels",
        "a vector is not a block, and sixteen taps are whole panels",
        r"^last -> true: const int64_t next_vector",
        r"^products \+ column -> a - b: add_rows<1>",
        levels=("baseline", "avx2"),
    ),
    *_same(
        "Col2imContraction::multiply_channels",
        "a panel is of whole blocks: column is a multiple",
        r"large_c \+ column -> a - b",
        levels=("avx2", "avx512"),
    ),
    *_same(
        "Col2imContraction::multiply_channels",
        "a vector more than there are channels is multiplied, and not read",
        r"^width - column > kWidth -> true",
        r"^width - column -> a \+ b",
        r"^column > kWidth -> a >= b",
    ),
    *_same(
        "Col2imContraction::add_rows",
        "rows beyond the last are added up where the sums are cleared afterwards",
        r"^row \+ (kTileRows|4) -> a - b",
        r"row \+ 4 <= -> 3",
    ),
    *_same(
        "Col2imContraction::add_rows",
        "rows that are not taken together are taken one by one",
        r"row \+ 4 <= -> 5",
        r"^(kTileRows|4) <= columns -> one step less",
    ),
    # conv/few.h
    *_same(
        "FewUp::FewUp",
        "how an image falls into strips, which give the same results in any number",
        r"const int64_t (row|small_rows|wanted) =",
        r"rows = larger\(1, ",
    ),
    *_same(
        "FewUp::(first|last)_small",
        "rows that no output of the strip takes part of are multiplied, too",
        r"^kernel_h - 1 -> a \+ b",
        r"^kernel_h - 1\) -> 0",
        r"^lowest <= 0 -> a < b",
        r"^lowest <= 0 \? -> 1",
        r"^end - 1 \+ -> 0",
    ),
    *_same(
        "(FewUp|Col2imPlan|Contraction)::(most_small_rows|scratch_size)",
        "the room of scratch; what is written past it is for make sanitize to find",
        r"return",
    ),
    # conv/algorithms.h
    *_same(
        "fits_winograd",
        "direct sums are as right",
        r"^kernel_[hw] == 4 && -> 5",
        r"^pad_[hw] == 1",
        r"^large_[hw] == 2 \* -> ",
        r"^2 \* g -> a",
    ),
    *_same(
        "fits_winograd",
        "kernel 4 and stride 2 to twice the side are there with padding 1 alone",
        r"^g.pad_[hw] == 1 -> true",
    ),
    *_same(
        "fits_winograd",
        "kernel 4 and padding 1 to twice the side are there with stride 2, or with one pixel, of "
        "which the stride says nothing",
        r"^(g.)?stride_[hw] == 2 ",
    ),
    *_same(
        "winograd_or_direct|algorithm_of|fits_col2im|wgrad_algorithm",
        "any of the forms that fit is right",
        r"^(?!!fits_winograd).*(int64_t tiles|int64_t side|tiles <= kFewTiles|side <= kSmallSide)",
        r"^(direction == ConvDirection::fprop|plain) -> false",
        r"<= kFew\w+ -> (a < b|true|false)",
    ),
    # conv/pack.cpp
    *_same("Packing::size", "room for more panels than there are", r"int64_t last ="),
    *_same(
        "read_taps",
        "what the fast ways read, the one for any weight reads as well",
        r"^taps == kSixteen -> false",
    ),
    *_same(
        "read_taps",
        "columns lie side by side in channels_last weights alone, or where a tap is all",
        r"stride == 1 -> true",
        r"tap > 1",
    ),
    *_same("read_taps", "columns beyond the last are not stored", r"^count > 0"),
    *_same("read_taps", "a vector is sixteen taps", r"^stride \+ tap ->", levels=("avx512",)),
    *_same(
        "pack_row|pack_few_row|pack",
        "columns beyond the last are not stored",
        r"int64_t count = smaller\(kWidth, larger\(0, columns - v\)\)",
        r"float value = 0",
        r"^smaller\(kPanel, p.columns - first\) -> second",
    ),
    *_same(
        "pack_few_row",
        "without transforms nothing overflows that PyTorch's sums do not",
        r"^value \* value -> a",
    ),
    *_same(
        "pack",
        "the distance of taps is asked of channels_last weights alone",
        r"^channels_last -> true: const Strides",
        r"large_c : 1\} -> ",
    ),
    *_same("pack", "only whether the sum is finite is asked", r"^squares = 0; -> 1"),
    *_same(
        "conv_plan",
        "a float that nobody reads, or a piece of no values",
        r"^form, 0, -> 1",
        r"^units, 1, -> 2",
        r"^pieces = 0; -> 1",
    ),
    # conv/dgrad.cpp
    *_same(
        "FewContraction::FewContraction",
        "the room of scratch; what is written past it is for make sanitize to find",
        r"kTileCount \* kPanel -> a",
    ),
    *_same("FewContraction::run", "no rows are multiplied", r"^last >= first -> true"),
    *_same(
        "FewContraction::gather_tap",
        "pixels outside the row are added up beside it, where nobody reads",
        r"int64_t begin = offset >= 0",
        r"int64_t last = g.large_w",
        r"int64_t end = last < 0",
    ),
    *_same("FewContraction::store_row", "no values are stored", r"^i < count -> (true|a <= b): if"),
    # conv/wgrad.cpp
    *_same(
        "products_of",
        "products are numbered with gaps",
        r"^axis.output_phases == 2 -> true",
        r"^output_phase\[1\] -> ",
        r"^products : 0\) -> 1",
    ),
    *_same(
        "spread_axis",
        "a value that no product takes",
        r"^kProducts == [34] -> true",
    ),
    *_same(
        "spread_tile|TapsOut::put",
        "the way for some channels, or any number of taps, serves as well",
        r"^count == kWidth -> false",
        r"^taps == 16 -> false",
        r"^taps == 16\) -> ",
    ),
    *_same(
        "spread_block",
        "what is stored by too small a transform is stored over by the right one",
        r"^t.size == [12] -> true",
    ),
    *_same("load_few", "there is one axis, and indices are taken modulo that", r"^axis_w\(0\) ->"),
    *_same(
        "load_chunk",
        "one thread begins at 0",
        r"chunk.first \+ begin",
        r"_values \+ begin \* kBlock",
        one_thread=True,
    ),
    *_same("separate_taps", "stride is 1", r"^[123] \* stride -> a"),
    *_same("separate", "a row more than there are taps, which nobody reads", r"^i < 4; -> 5"),
    *_same("TapsOut::put", "a vector is sixteen taps", r"^taps \+ tap ->", levels=("avx512",)),
    *_same(
        "finish",
        "channels beyond the vector are stored over in their turn",
        r"^smaller\(kWidth, g.large_c - c\) -> second",
    ),
    *_same(
        "conv_wgrad_plan",
        "how many tiles a chunk has, or how much room",
        r"plan->rows = ",
        r"int64_t small = 1, large = 1, most = 1",
        r"pass < t -> one step less: for",
        r"most = larger\(most, t.tiles",
        r"^few -> false",
        r"small = larger\(small",
    ),
    *_same(
        "conv_wgrad_(chunk|multiply)",
        "the one value of few channels has one term, number 0",
        r"^(call.)?plan.form [!=]= ConvAlgorithm::few -> (true|false)",
    ),
)
"""The mutants that change no result; found by the first rule that covers them."""
