"""Normal noise by Philox 4x32-10, as ``genimg/reference/reparam_kl.py`` defines it."""

from __future__ import annotations

import triton
import triton.language as tl

from genimg.kernels.triton.elementary import log, sincos_turn


@triton.jit
def _low(x):
    return (x & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def _high(x):
    return ((x >> 32) & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def philox_words(counter, seed_ptr):
    """Four uint32 words for each int64 ``counter``, under the key and offset at ``seed_ptr``."""
    key = tl.load(seed_ptr)
    offset = tl.load(seed_ptr + 1)
    k0, k1 = _low(key), _high(key)
    c0, c1 = _low(counter), _high(counter)
    c2, c3 = tl.zeros_like(c0) + _low(offset), tl.zeros_like(c0) + _high(offset)
    for _ in tl.static_range(10):
        # Both halves of a product come out of one multiplication of 32 by 32 bits.
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p2 = c2.to(tl.uint64) * 0xCD9E8D57
        c0, c2 = _high(p2) ^ c1 ^ k0, _high(p0) ^ c3 ^ k1
        c1, c3 = _low(p2), _low(p0)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _uniform(word):
    """In (0, 1]: the word is rounded to float32 first."""
    return word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10


@triton.jit
def _normal_pair(radius_word, angle_word):
    radius = tl.sqrt_rn(-2.0 * log(_uniform(radius_word)))
    sine, cosine = sincos_turn(_uniform(angle_word))
    return radius * cosine, radius * sine


@triton.jit
def philox_normal(counter, seed_ptr):
    """``[..., 4 n]`` normal values of ``[..., n]`` counters: Box and Muller's, four for each."""
    w0, w1, w2, w3 = philox_words(counter, seed_ptr)
    n0, n1 = _normal_pair(w0, w1)
    n2, n3 = _normal_pair(w2, w3)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))
