"""LeakyReLU, exp, log, sine and cosine of float32 values, as ``kernels/cpu/elementary.h`` has them.

Triton's own are either rough near 1 and 0 (``ex2.approx``, ``lg2.approx``), or have a slow path
with a stack. These have neither, and the interpreter runs what a GPU runs, but for the rounding of
the logarithm's division and of products that a GPU fuses. Each is within two ulp on the range that
it states, if it states no other bound.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def leaky(gate, value, slope):
    """``value`` where the gate is above 0, else ``slope value``: LeakyReLU and its derivative.

    A slope of 0 is ReLU, which masks as torch's does: a product with 0 would make NaN of the -Inf,
    or of the infinite gradient, that is to become 0. A gate that is NaN lets the value pass there.
    """
    masked = tl.where(gate <= 0, 0.0, value)
    return tl.where(gate > 0, value, tl.where(slope == 0, masked, value * slope))


@triton.jit
def _exp_parts(x):
    """``2**n``, ``r`` and ``exp(r) - 1 - r``, where ``x = n ln 2 + r``, for ``|x| <= 80``.

    The shift by 1.5 * 2**23 rounds to the nearest integer, and leaves it in the low bits.
    """
    shifted = x * 1.44269504 + 12582912.0
    n = shifted - 12582912.0
    # ln 2 in two pieces, so that n times the first is exact.
    r = (x - n * 0.693359375) - n * -2.12194440e-4
    p = 1.0 / 40320
    p = p * r + 1.0 / 5040
    p = p * r + 1.0 / 720
    p = p * r + 1.0 / 120
    p = p * r + 1.0 / 24
    p = p * r + 1.0 / 6
    p = p * r + 0.5
    scale = ((shifted.to(tl.int32, bitcast=True) + 127) << 23).to(tl.float32, bitcast=True)
    return scale, r, p * r * r


@triton.jit
def exp(x):
    """For ``|x| <= 80``."""
    scale, r, remainder = _exp_parts(x)
    return scale * (1.0 + (r + remainder))


@triton.jit
def expm1(x):
    """For ``|x| <= 80``."""
    scale, r, remainder = _exp_parts(x)
    return scale * (r + remainder) + (scale - 1.0)


@triton.jit
def expm1_minus_x(x):
    """``expm1(x) - x`` for ``|x| <= 80``, within eight ulp.

    Where ``n`` is 0 it is the remainder alone; just beyond, it cancels.
    """
    scale, r, remainder = _exp_parts(x)
    return (scale * r - x) + (scale * remainder + (scale - 1.0))


@triton.jit
def log(x):
    """For normal ``x > 0``.

    ``x = 2**e m`` with ``m`` in [sqrt(1/2), sqrt(2)), and ``log m = 2 atanh((m - 1) / (m + 1))``.
    """
    bits = x.to(tl.int32, bitcast=True) - 0x3F3504F3  # sqrt(1/2)
    e = (bits >> 23).to(tl.float32)
    m = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
    r = m - 1.0
    s = r / (m + 1.0)
    s2 = s * s
    p = 2.0 / 11
    p = p * s2 + 2.0 / 9
    p = p * s2 + 2.0 / 7
    p = p * s2 + 2.0 / 5
    p = p * s2 + 2.0 / 3
    # 2 s = r - s r: exact in r, so that the logarithm of a number next to 1 keeps its digits.
    log_m = r - s * (r - p * s2)
    return e * 0.693359375 + (log_m + e * -2.12194440e-4)


@triton.jit
def sincos_turn(u):
    """Sine and cosine of ``2 pi u`` for ``0 <= u <= 1``."""
    quarters = u * 4.0
    shifted = quarters + 12582912.0
    x = (quarters - (shifted - 12582912.0)) * 1.57079633  # at most pi / 4
    x2 = x * x
    s = 1.0 / 362880
    s = s * x2 - 1.0 / 5040
    s = s * x2 + 1.0 / 120
    s = s * x2 - 1.0 / 6
    s = s * x2 * x + x
    c = -1.0 / 3628800
    c = c * x2 + 1.0 / 40320
    c = c * x2 - 1.0 / 720
    c = c * x2 + 1.0 / 24
    c = c * x2 - 0.5
    c = c * x2 + 1.0
    quadrant = shifted.to(tl.int32, bitcast=True)
    odd = (quadrant & 1) != 0
    sine = tl.where(odd, c, s)
    cosine = tl.where(odd, s, c)
    sine = tl.where((quadrant & 2) != 0, -sine, sine)
    return sine, tl.where(((quadrant + 1) & 2) != 0, -cosine, cosine)
