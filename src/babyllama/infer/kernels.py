"""Triton kernels of one decoding step: five a layer, one for the head. Their oracle is the model's own forward path.

Shapes: B rows of the batch, C hidden_size, H query heads, K key-value heads, D head_dim, F intermediate_size,
V vocabulary, S slots of the cache. The residual stream is float32; weights, cache and products are of half precision,
sums in float32. Two ways to multiply, by the batch: `FEW` rows one after the other beside a tile of weights that stays
in registers, or tensor cores over tiles. A kernel that may start before the one ahead of it has ended (programmatic
dependent launch, `EARLY`) makes its weights ready, then waits. In one file although it is long: the kernels are the
stages of one step and share their tricks. Imported only where there is a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda


@triton.jit
def _start(EARLY: tl.constexpr):
    """Let the next kernel start: it loads its weights, which takes longer than to begin."""
    if EARLY:
        cuda.gdc_launch_dependents()


@triton.jit
def _wait(EARLY: tl.constexpr):
    """Wait for all before this kernel."""
    if EARLY:
        cuda.gdc_wait()


@triton.jit
def _wait_for(B, EARLY: tl.constexpr):
    """The same B times, of which the first counts: over a loop the compiler moves nothing that `_now` holds."""
    if EARLY:
        for _ in range(B):
            cuda.gdc_wait()


@triton.jit
def _weights(w, rows, columns, n, k):
    """Rows `rows` (R,) and columns `columns` (T,) of a matrix (n, k), zero beyond it."""
    inside = (rows[:, None] < n) & (columns[None, :] < k)
    return tl.load(w + rows[:, None].to(tl.int64) * k + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _matrix(w, groups, rows, block, n, k: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
            LAID: tl.constexpr, one, EARLY: tl.constexpr):  # fmt: skip
    """Rows `rows` (R,) of a matrix (n, k), zero beyond it, before the kernel waits: (R, TILE) float32.

    Packed, a word holds 32 / BITS codes of one output: words (k · BITS / 32, n) int32, groups (k / GROUP, n) int32 of
    scale and zero; or LAID, these rows' alone, number `block` of them, side by side, as `decoding.lay_out` has it.
    (code − zero) · scale is one multiply-add of what `_code` makes of a code.
    """
    if BITS == 0:
        found = _weights(w, rows, tl.arange(0, TILE), n, k).to(tl.float32)
    else:
        R: tl.constexpr = rows.shape[0]
        U: tl.constexpr = (k * BITS + 31) // 32
        G: tl.constexpr = (k + GROUP - 1) // GROUP
        units, mine = tl.arange(0, TILE * BITS // 32), tl.arange(0, R)
        group = (units * 32 // BITS // GROUP)[None, :]
        if LAID:
            at = w + block * (U * R) + units[None, :] * R + mine[:, None]
            of = groups + block * (G * R) + group * R + mine[:, None]
            inside = (units < U)[None, :] & (mine >= 0)[:, None]
        else:
            at, of = w + units[None, :] * n + rows[:, None], groups + group * n + rows[:, None]
            inside = (units < U)[None, :] & (rows < n)[:, None]
        if LAID and units.shape[0] == U:
            words, both = tl.load(at), tl.load(of)
        else:
            words, both = tl.load(at, mask=inside, other=0), tl.load(of, mask=inside, other=0)
        found = _unpacked(words, both, BITS, one)
    return _now(found, EARLY)


@triton.jit
def _unpacked(words, both, BITS: tl.constexpr, one):
    """Words (R, U) and, for each, the scale and zero of its group → weights (R, U · 32 / BITS) float32."""
    scale = both.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    zero = (both >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    if BITS == 8:
        s, z = scale * 32768, (-32768.0 - zero) * scale
        even = tl.join(_code(words << 8, 0xFF00, one) * s + z, _code(words >> 8, 0xFF00, one) * s + z)
        odd = tl.join(_code(words, 0xFF00, one) * s + z, _code(words >> 16, 0xFF00, one) * s + z)
    else:
        a, b, c, d = words << 15, words << 7, words >> 1, words >> 9
        s, z, t, y = scale * 256, (-256.0 - zero) * scale, scale * 16, (-16.0 - zero) * scale
        even = tl.join(
            tl.join(_code(a, 0x78000, one) * s + z, _code(c, 0x78000, one) * s + z),
            tl.join(_code(b, 0x78000, one) * s + z, _code(d, 0x78000, one) * s + z),
        )
        odd = tl.join(
            tl.join(_code(a, 0x780000, one) * t + y, _code(c, 0x780000, one) * t + y),
            tl.join(_code(b, 0x780000, one) * t + y, _code(d, 0x780000, one) * t + y),
        )
    return tl.reshape(tl.join(even, odd), (words.shape[0], words.shape[1] * (32 // BITS)))


@triton.jit
def _tile(w, groups, rows, start, n, k: tl.constexpr, kind: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr,
          GROUP: tl.constexpr, one):  # fmt: skip
    """Rows `rows` (R,) and TILE columns from `start` on of a matrix (n, k), zero beyond it, for tensor cores:
    (R, TILE) of dtype `kind`. Packed it is read as it lies, not LAID."""
    if BITS == 0:
        return _weights(w, rows, start + tl.arange(0, TILE), n, k)
    else:
        units = start * BITS // 32 + tl.arange(0, TILE * BITS // 32)
        inside = (rows < n)[:, None] & (units * 32 < k * BITS)[None, :]
        words = tl.load(w + units[None, :] * n + rows[:, None], mask=inside, other=0)
        group = (units * 32 // BITS // GROUP)[None, :]
        both = tl.load(groups + group * n + rows[:, None], mask=inside, other=0)
        return _unpacked(words, both, BITS, one).to(kind)


@triton.jit
def _one(B):
    """1.0 as bits, which the compiler must not know: with two constants, `_code` takes two instructions."""
    return 0x3F800000 | (B >> 31)


@triton.jit
def _now(found, NOW: tl.constexpr):
    """The same, computed here: the compiler would rather do it when it is needed, after all waiting."""
    if NOW:
        found = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [found], dtype=tl.float32, is_pure=False, pack=1)
    return found


@triton.jit
def _codes(w, rows, n, k: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr, one):
    """All codes of the rows `rows` (R,), in their order, as `_code` makes them: (R, TILE) float32."""
    units = tl.arange(0, TILE * BITS // 32)
    inside = (rows[:, None] < n) & (units[None, :] * 32 < k * BITS)
    words = tl.load(w + units[None, :] * n + rows[:, None], mask=inside, other=0)
    if BITS == 8:
        even = tl.join(_code(words << 8, 0xFF00, one), _code(words >> 8, 0xFF00, one))
        odd = tl.join(_code(words, 0xFF00, one), _code(words >> 16, 0xFF00, one))
    else:
        a, b, c, d = words << 15, words << 7, words >> 1, words >> 9
        even = tl.join(
            tl.join(_code(a, 0x78000, one), _code(c, 0x78000, one)),
            tl.join(_code(b, 0x78000, one), _code(d, 0x78000, one)),
        )
        odd = tl.join(
            tl.join(_code(a, 0x780000, one), _code(c, 0x780000, one)),
            tl.join(_code(b, 0x780000, one), _code(d, 0x780000, one)),
        )
    return tl.reshape(tl.join(even, odd), (rows.shape[0], TILE))


@triton.jit
def _code(words, mask: tl.constexpr, one):
    """1 + code / 2^(23 − its place): bits behind a 1's point are a float without a conversion or a subtraction."""
    return ((words & mask) | one).to(tl.float32, bitcast=True)


@triton.jit
def _lift(TILE: tl.constexpr, BITS: tl.constexpr):
    """By what each code of a row is too small in `_codes`, (TILE,)."""
    place = tl.full((TILE,), 15, tl.int32)
    if BITS == 4:
        place = 8 - 4 * (tl.arange(0, TILE) % 2)
    return ((127 + place) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _packed(codes, zeros, scales, rows, n, value, k: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr,
            GROUP: tl.constexpr):  # fmt: skip
    """`_codes` of rows (R,) times a vector (TILE,) → (R,): Σ scale · (Σ code · value − zero · Σ value) over groups.

    Fewer instructions than by `_matrix`, but more of them after waiting.
    """
    SPAN: tl.constexpr = GROUP if (GROUP & (GROUP - 1)) == 0 and GROUP <= TILE else 32 // BITS
    R: tl.constexpr = codes.shape[0]
    U: tl.constexpr = TILE // SPAN
    at = tl.arange(0, U) * SPAN
    group, inside = (at // GROUP)[None, :] * n + rows[:, None], (rows[:, None] < n) & (at[None, :] < k)
    zero = tl.load(zeros + group, mask=inside, other=0).to(tl.float32)
    scale = tl.load(scales + group, mask=inside, other=0.0).to(tl.float32)
    moved = value * _lift(TILE, BITS)
    found = tl.sum(tl.reshape(codes * moved[None, :], (R, U, SPAN)), 2)
    ones, plain = tl.sum(tl.reshape(moved, (U, SPAN)), 1), tl.sum(tl.reshape(value, (U, SPAN)), 1)
    return tl.sum((found - ones[None, :] - zero * plain[None, :]) * scale, 1)


@triton.jit
def _inputs(order, k, TILE: tl.constexpr, ORDERED: tl.constexpr, BITS: tl.constexpr):
    """The input that each column of a matrix is of, (TILE,); k or more where there is none."""
    columns = tl.arange(0, TILE)
    if BITS == 8:  # a thread has four at a time, as of a word's codes
        columns = tl.max_contiguous(columns, 4)
    if ORDERED:
        return tl.load(order + columns, mask=columns < k, other=k)
    return columns


@triton.jit
def _normed(x, row, at, gain, eps, C: tl.constexpr):
    """Inputs `at` of row `row` of x (B, C) times the norm's weight, and 1 / rms, by which sums of them are multiplied:
    they need not wait for it."""
    value = tl.load(x + row * C + at, mask=at < C, other=0.0)
    return value * gain, tl.rsqrt(tl.sum(value * value) / C + eps)


@triton.jit
def _product(weights, value):
    """(R, TILE) · (TILE,) → (R,)"""
    return tl.sum(weights * value[None, :], 1)


@triton.jit
def _turned(a, b, cos, sin, rows, pairs, B, half):
    """Both halves (rows, pairs) of a head's vectors, rotated by the angles (B, half) of each row's place."""
    inside = (rows[:, None] < B) & (pairs[None, :] < half)
    at = rows[:, None] * half + pairs[None, :]
    c, s = tl.load(cos + at, mask=inside, other=1.0), tl.load(sin + at, mask=inside, other=0.0)
    return a * c - b * s, b * c + a * s


@triton.jit
def _keep(first, second, rows, owners, pairs, kind, head, positions, q, keys, values, B, D, slots,
          H: tl.constexpr, K: tl.constexpr):  # fmt: skip
    """Write both halves (rows, pairs) of one head's vector: a query to q (B, H, D), the others to their slot of the
    cache's rows `owners`."""
    half = D // 2
    inside = (rows[:, None] < B) & (pairs[None, :] < half)
    slot = tl.load(positions + rows, mask=rows < B, other=0).to(tl.int64)
    if kind == 0:
        at = q + (rows[:, None].to(tl.int64) * H + head) * D + pairs[None, :]
    else:
        cache = keys if kind == 1 else values
        at = cache + ((owners[:, None].to(tl.int64) * K + head) * slots + slot[:, None]) * D + pairs[None, :]
    tl.store(at, first.to(q.dtype.element_ty), mask=inside)
    tl.store(at + half, second.to(q.dtype.element_ty), mask=inside)


@triton.jit
def _factor(squares, rows, B, eps, C: tl.constexpr, PARTS: tl.constexpr):
    """1 / rms of each row of x, whose Σ x² lies in `squares` (B, PARTS) by parts."""
    parts = tl.arange(0, PARTS)
    found = tl.load(squares + rows[:, None] * PARTS + parts[None, :], mask=(rows < B)[:, None], other=0.0)
    return tl.rsqrt(tl.sum(found, 1) / C + eps)[:, None]


@triton.jit
def _given(values, order, rows, start, B, k, TILE: tl.constexpr, ORDERED: tl.constexpr):
    """What TILE columns from `start` on of a matrix multiply: of `rows` of values (B, k), zero beyond them."""
    at = start + tl.arange(0, TILE)
    if ORDERED:
        at = tl.load(order + at, mask=at < k, other=k)
    inside = (rows[:, None] < B) & (at[None, :] < k)
    return tl.load(values + rows[:, None] * k + at[None, :], mask=inside, other=0.0)


@triton.jit
def _pair(y, squares, first, gf, of, second, gs, os, lower, upper, rows, B, n, eps, C: tl.constexpr, R: tl.constexpr,
          TILE: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
          ORDERED: tl.constexpr):  # fmt: skip
    """norm(x) times the rows `lower` of one matrix (n, C) and `upper` of another: (ROWS, R) float32 each.

    y is x times the norm's weight, in half precision; the norm's factor multiplies the sums.
    """
    a, b = tl.zeros((ROWS, R), tl.float32), tl.zeros((ROWS, R), tl.float32)
    for start in range(0, C, TILE):
        value = _given(y, of, rows, start, B, C, TILE, ORDERED)
        a = tl.dot(value, _tile(first, gf, lower, start, n, C, value.dtype, TILE, BITS, GROUP, _one(B)).T, a)
        if ORDERED:
            value = _given(y, os, rows, start, B, C, TILE, ORDERED)
        b = tl.dot(value, _tile(second, gs, upper, start, n, C, value.dtype, TILE, BITS, GROUP, _one(B)).T, b)
    factor = _factor(squares, rows, B, eps, C, PARTS)
    return a * factor, b * factor


@triton.jit(do_not_specialize=["B"])
def project(x, y, squares, norm, wq, gq, oq, wk, gk, ok, wv, gv, ov, cos, sin, positions, owner, q, keys,
            values, B, slots, eps, C: tl.constexpr, D: tl.constexpr, H: tl.constexpr, K: tl.constexpr, P: tl.constexpr,
            TILE: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, FEW: tl.constexpr, BITS: tl.constexpr,
            GROUP: tl.constexpr, ORDERED: tl.constexpr, LAID: tl.constexpr, FIRST: tl.constexpr,
            READS: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    """x (B, C) → norm → q, rotated; k, rotated, and v into the cache. A program has P pairs (i, i + D/2) of a head.

    keys, values: (B, K, slots, D) of the layer. cos, sin: (B, D/2). The FIRST of a step lets `attend_few` start only
    when all before it has ended. READS: row b's slots are those of the cache's row owner[b].
    """
    _start(EARLY and not FIRST)
    half: tl.constexpr = D // 2
    parts: tl.constexpr = (half + P - 1) // P
    which, part = tl.program_id(1) // parts, tl.program_id(1) % parts
    kind = tl.where(which < H, 0, tl.where(which < H + K, 1, 2))
    head = tl.where(which < H, which, tl.where(which < H + K, which - H, which - H - K))
    w, g, o, n = wq, gq, oq, H * D
    if kind == 1:
        w, g, o, n = wk, gk, ok, K * D
    if kind == 2:
        w, g, o, n = wv, gv, ov, K * D
    pairs = part * P + tl.arange(0, P)
    lower = tl.where(pairs < half, head * D + pairs, n)
    upper = tl.where(pairs < half, lower + half, n)
    if FEW:
        if BITS == 0:
            first = _matrix(w, g, lower, 0, n, C, TILE, BITS, GROUP, LAID, _one(B), EARLY)
            second = _matrix(w, g, upper, 0, n, C, TILE, BITS, GROUP, LAID, _one(B), EARLY)
        else:
            sides, block = tl.reshape(tl.join(lower, upper), (2 * P,)), head * parts + part
            both = _matrix(w, g, sides, block, n, C, TILE, BITS, GROUP, LAID, _one(B), EARLY)
        at = _inputs(o, C, TILE, ORDERED, BITS)
        gain = tl.load(norm + at, mask=at < C, other=0.0).to(tl.float32)
        _wait_for(B, EARLY)
        _start(EARLY and FIRST)
        for row in tl.static_range(ROWS):
            value, factor = _normed(x, row, at, gain, eps, C)
            if BITS == 0:
                a, b = _product(first, value)[None, :] * factor, _product(second, value)[None, :] * factor
            else:
                a, b = tl.split(tl.reshape(_product(both, value) * factor, (1, P, 2)))
            rows = row + tl.arange(0, 1)
            if kind < 2:
                a, b = _turned(a, b, cos, sin, rows, pairs, B, half)
            _keep(a, b, rows, rows, pairs, kind, head, positions, q, keys, values, B, D, slots, H, K)
    else:
        _wait(EARLY)
        rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        a, b = _pair(y, squares, w, g, o, w, g, o, lower, upper, rows, B, n, eps, C, P, TILE, ROWS, PARTS, BITS, GROUP,
                     ORDERED)  # fmt: skip
        if kind < 2:
            a, b = _turned(a, b, cos, sin, rows, pairs, B, half)
        owners = rows
        if READS:
            owners = tl.load(owner + rows, mask=rows < B, other=0)
        _keep(a, b, rows, owners, pairs, kind, head, positions, q, keys, values, B, D, slots, H, K)


@triton.jit
def attend(q, keys, values, positions, owner, out, peaks, sums, slots, scale, D: tl.constexpr, H: tl.constexpr,
           K: tl.constexpr, G: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr, SPLITS: tl.constexpr,
           READS: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    """One token's attention over the slots up to its own. A program has a row's key head and a share of the slots.
    READS: of the cache's row owner[b], so that tokens of one text may be rows side by side.

    Args:
        out: (B, H·D), or with SPLITS float32 (B, SPLITS, H·D), not yet divided; then peaks and sums (B, SPLITS, H).
    """
    _start(EARLY)
    _wait(EARLY)
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group: tl.constexpr = H // K
    end = tl.load(positions + row).to(tl.int32) + 1
    share = (end + SPLITS * STEP - 1) // (SPLITS * STEP) * STEP
    first, last = split * share, tl.minimum(end, (split + 1) * share)
    heads, width, steps = tl.arange(0, G), tl.arange(0, WIDTH), tl.arange(0, STEP)
    inside = (heads[:, None] < group) & (width[None, :] < D)
    place = (row.to(tl.int64) * H + head * group + heads[:, None]) * D + width[None, :]
    query = tl.load(q + place, mask=inside, other=0.0)
    whose = row
    if READS:
        whose = tl.load(owner + row)
    base = (whose.to(tl.int64) * K + head) * slots * D
    peak = tl.full((G,), float("-inf"), tl.float32)
    total, found = tl.zeros((G,), tl.float32), tl.zeros((G, WIDTH), tl.float32)
    for start in range(first, last, STEP):
        at = start + steps
        there = (at[:, None] < last) & (width[None, :] < D)
        where = base + at[:, None] * D + width[None, :]
        key = tl.load(keys + where, mask=there, other=0.0)
        scores = tl.where(at[None, :] < last, tl.dot(query, key.T) * scale, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights, shrink = tl.exp(scores - higher[:, None]), tl.exp(peak - higher)
        value = tl.load(values + where, mask=there, other=0.0)
        found = tl.dot(weights.to(value.dtype), value, found * shrink[:, None])
        total, peak = total * shrink + tl.sum(weights, 1), higher
    if SPLITS == 1:
        tl.store(out + place, (found / total[:, None]).to(out.dtype.element_ty), mask=inside)
    else:
        at = (row * SPLITS + split) * H + head * group + heads
        tl.store(out + at[:, None] * D + width[None, :], found, mask=inside)
        tl.store(peaks + at, peak, mask=heads < group)
        tl.store(sums + at, total, mask=heads < group)


@triton.jit
def _seen(query, key, value, at, last, peak, total, found):
    """What a query (WIDTH,) has seen — the largest score, Σ exp(score − it), and the values by that — after so many
    slots `at` (STEP,) more, of which those before `last` count: key, value (STEP, WIDTH)."""
    scores = tl.where(at < last, tl.sum(key * query[None, :], 1), float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, 0))
    base = tl.where(higher > float("-inf"), higher, 0.0)  # a share without slots
    weights, shrink = tl.exp(scores - base), tl.exp(peak - base)
    return higher, total * shrink + tl.sum(weights, 0), found * shrink + tl.sum(weights[:, None] * value, 0)


@triton.jit(do_not_specialize=["B"])
def attend_few(q, keys, values, positions, out, peaks, sums, B, slots, scale, D: tl.constexpr, H: tl.constexpr,
               K: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr, SPLITS: tl.constexpr,
               EARLY: tl.constexpr):  # fmt: skip
    """As `attend`, for few rows: a program has a query head, and holds what earlier tokens left before it waits.

    All kernels of earlier steps have ended when it begins: the first `project` of a step starts it after its own wait.
    """
    _start(EARLY)
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    newest = tl.load(positions + row, cache_modifier=".cg").to(tl.int32)
    share = (newest // (SPLITS * STEP) + 1) * STEP
    first, last = split * share, tl.minimum(newest, (split + 1) * share)  # without the newest
    at, width = first + tl.arange(0, STEP), tl.arange(0, WIDTH)
    base = (row.to(tl.int64) * K + head // (H // K)) * slots * D
    where = base + at[:, None] * D + width[None, :]
    there = (at < last)[:, None] & (width < D)[None, :]
    key = _now(tl.load(keys + where, mask=there, other=0.0, cache_modifier=".cg").to(tl.float32), EARLY)
    value = _now(tl.load(values + where, mask=there, other=0.0, cache_modifier=".cg").to(tl.float32), EARLY)
    _wait_for(B, EARLY)
    place, own = (row.to(tl.int64) * H + head) * D + width, base + newest * D + width
    query = tl.load(q + place, mask=width < D, other=0.0).to(tl.float32) * scale
    new_key = tl.load(keys + own, mask=width < D, other=0.0).to(tl.float32)
    new_value = tl.load(values + own, mask=width < D, other=0.0).to(tl.float32)
    mine = (newest >= first) & (newest < first + share)
    peak, total = tl.where(mine, tl.sum(query * new_key, 0), float("-inf")), tl.where(mine, 1.0, 0.0)
    peak, total, found = _seen(query, key, value, at, last, peak, total, tl.where(mine, new_value, 0.0))
    for start in range(first + STEP, last, STEP):
        at = start + tl.arange(0, STEP)
        where, there = base + at[:, None] * D + width[None, :], (at < last)[:, None] & (width < D)[None, :]
        key = tl.load(keys + where, mask=there, other=0.0).to(tl.float32)
        value = tl.load(values + where, mask=there, other=0.0).to(tl.float32)
        peak, total, found = _seen(query, key, value, at, last, peak, total, found)
    if SPLITS == 1:
        tl.store(out + place, (found / total).to(out.dtype.element_ty), mask=width < D)
    else:
        at = (row * SPLITS + split) * H + head
        tl.store(out + at * D + width, found, mask=width < D)
        tl.store(peaks + at, peak)
        tl.store(sums + at, total)


@triton.jit
def _joined(a, peaks, sums, row, columns, k, D: tl.constexpr, H: tl.constexpr, SPLITS: tl.constexpr):
    """Row `row` of what `attend` left, its splits put together: (len(columns),) float32."""
    if SPLITS == 1:
        return tl.load(a + row * k + columns, mask=columns < k, other=0.0).to(tl.float32)
    splits = tl.arange(0, SPLITS)
    inside = (columns[None, :] < k) & (splits[:, None] < SPLITS)
    at = (row * SPLITS + splits[:, None]) * H + columns[None, :] // D
    peak = tl.load(peaks + at, mask=inside, other=float("-inf"))
    weight = tl.where(inside, tl.exp(peak - tl.max(peak, 0)[None, :]), 0.0)
    total = tl.sum(weight * tl.load(sums + at, mask=inside, other=0.0), 0)
    parts = tl.load(a + (row * SPLITS + splits[:, None]) * k + columns[None, :], mask=inside, other=0.0)
    return tl.where(columns < k, tl.sum(weight * parts, 0) / total, 0.0)


@triton.jit
def _whole(a, peaks, sums, row, k: tl.constexpr, D: tl.constexpr, H: tl.constexpr, TILE: tl.constexpr,
           SPLITS: tl.constexpr):  # fmt: skip
    """`_joined` of all inputs in their order, (TILE,), where D is a power of two: a share's weight is found once a
    head."""
    splits, heads, columns = tl.arange(0, SPLITS)[:, None], tl.arange(0, TILE // D)[None, :], tl.arange(0, TILE)
    at = (row * SPLITS + splits) * H + heads
    peak = tl.load(peaks + at, mask=heads < H, other=0.0)
    weight = tl.exp(peak - tl.max(peak, 0)[None, :])
    weight /= tl.sum(weight * tl.load(sums + at, mask=heads < H, other=1.0), 0)[None, :]
    parts = tl.load(a + (row * SPLITS + splits) * k + columns[None, :], mask=columns[None, :] < k, other=0.0)
    return tl.reshape(tl.sum(tl.reshape(parts, (SPLITS, TILE // D, D)) * weight[:, :, None], 0), (TILE,))


@triton.jit
def join(a, peaks, sums, out, k: tl.constexpr, D: tl.constexpr, H: tl.constexpr, TILE: tl.constexpr,
         SPLITS: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    """The splits that `attend` left → out (B, k)."""
    _start(EARLY)
    _wait(EARLY)
    row, columns = tl.program_id(0), tl.program_id(1) * TILE + tl.arange(0, TILE)
    found = _joined(a, peaks, sums, row, columns, k, D, H, SPLITS)
    tl.store(out + row * k + columns, found.to(out.dtype.element_ty), mask=columns < k)


@triton.jit(do_not_specialize=["B"])
def add(a, peaks, sums, w, groups, order, x, norm, y, squares, B, k: tl.constexpr, C: tl.constexpr,
        D: tl.constexpr, H: tl.constexpr, R: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
        ROWS: tl.constexpr, PARTS: tl.constexpr, FEW: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
        ORDERED: tl.constexpr, LAID: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    """x (B, C) += a (B, k) · w (C, k)ᵀ: the ends of attention (its splits put together) and of the MLP.

    For tensor cores it also leaves what the next norm needs: y = x · norm's weight, and Σ x² of its columns.
    """
    _start(EARLY)
    part = tl.program_id(1)
    outputs = part * R + tl.arange(0, R)
    if FEW:
        weights = _matrix(w, groups, outputs, part, C, k, TILE, BITS, GROUP, LAID, _one(B), EARLY)
        inputs = _inputs(order, k, TILE, ORDERED, BITS)
        _wait_for(B, EARLY)
        for row in tl.static_range(ROWS):
            if SPLITS == 1 or ORDERED or D & (D - 1) != 0:
                value = _joined(a, peaks, sums, row, inputs, k, D, H, SPLITS)
            else:
                value = _whole(a, peaks, sums, row, k, D, H, TILE, SPLITS)
            found = _product(weights, value)
            at = x + row * C + outputs
            tl.store(at, tl.load(at, mask=outputs < C, other=0.0) + found, mask=outputs < C)
    else:
        _wait(EARLY)
        rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        found = tl.zeros((ROWS, R), tl.float32)
        for start in range(0, k, TILE):
            value = _given(a, order, rows, start, B, k, TILE, ORDERED)
            weights = _tile(w, groups, outputs, start, C, k, value.dtype, TILE, BITS, GROUP, _one(B))
            found = tl.dot(value, weights.T, found)
        at, inside = rows[:, None] * C + outputs[None, :], (rows[:, None] < B) & (outputs[None, :] < C)
        found += tl.load(x + at, mask=inside, other=0.0)
        tl.store(x + at, found, mask=inside)
        gain = tl.load(norm + outputs, mask=outputs < C, other=0.0).to(tl.float32)
        tl.store(y + at, (found * gain[None, :]).to(y.dtype.element_ty), mask=inside)
        tl.store(squares + rows * PARTS + part, tl.sum(tl.where(inside, found * found, 0.0), 1), mask=rows < B)


@triton.jit(do_not_specialize=["B"])
def widen(x, y, squares, norm, gate, gg, og, up, gu, ou, h, B, eps, C: tl.constexpr, F: tl.constexpr,
          R: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, FEW: tl.constexpr,
          BITS: tl.constexpr, GROUP: tl.constexpr, ORDERED: tl.constexpr, LAID: tl.constexpr,
          EARLY: tl.constexpr):  # fmt: skip
    """x (B, C) → norm → h (B, F) = silu(x · gateᵀ) · (x · upᵀ)."""
    _start(EARLY)
    part = tl.program_id(1)
    outputs = part * R + tl.arange(0, R)
    if FEW:
        gates = _matrix(gate, gg, outputs, part, F, C, TILE, BITS, GROUP, LAID, _one(B), EARLY)
        ups = _matrix(up, gu, outputs, part, F, C, TILE, BITS, GROUP, LAID, _one(B), EARLY)
        first, second = _inputs(og, C, TILE, ORDERED, BITS), _inputs(ou, C, TILE, ORDERED, BITS)
        gain = tl.load(norm + first, mask=first < C, other=0.0).to(tl.float32)
        other = gain
        if ORDERED:
            other = tl.load(norm + second, mask=second < C, other=0.0).to(tl.float32)
        _wait_for(B, EARLY)
        for row in tl.static_range(ROWS):
            value, factor = _normed(x, row, first, gain, eps, C)
            a = _product(gates, value) * factor
            if ORDERED:
                value, factor = _normed(x, row, second, other, eps, C)
            b = _product(ups, value) * factor
            tl.store(h + row * F + outputs, (a * tl.sigmoid(a) * b).to(h.dtype.element_ty), mask=outputs < F)
    else:
        _wait(EARLY)
        rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        a, b = _pair(y, squares, gate, gg, og, up, gu, ou, outputs, outputs, rows, B, F, eps, C, R, TILE, ROWS, PARTS,
                     BITS, GROUP, ORDERED)  # fmt: skip
        inside = (rows[:, None] < B) & (outputs[None, :] < F)
        tl.store(h + rows[:, None] * F + outputs[None, :], (a * tl.sigmoid(a) * b).to(h.dtype.element_ty), mask=inside)


@triton.jit
def _cold(rules, rows, B):
    """1 / temperature of some rows; 1 where that is 0, which is greedy."""
    heat = tl.load(rules + rows * 7, mask=rows < B, other=1.0)
    return tl.where(heat > 0, 1 / tl.where(heat > 0, heat, 1.0), 1.0)


@triton.jit
def _summary(scores, outputs, V, row, block, cold, best, places, masses, blocks):
    """Of scores (R,) of one row: the largest, the first place that has it, Σ exp((score − largest) · cold), where NaN
    shows too."""
    scores = tl.where(outputs < V, scores, float("-inf"))
    top = tl.max(scores, 0)
    place = tl.min(tl.where(scores == top, outputs, 2147483647), 0)
    at = row * blocks + block
    tl.store(best + at, top)
    tl.store(places + at, place)
    tl.store(masses + at, tl.sum(tl.exp((scores - top) * cold), 0))


@triton.jit(do_not_specialize=["B"])
def predict(x, y, squares, norm, w, zeros, scales, groups, order, rules, logits, best, places, masses, B, V, n, eps,
            blocks, C: tl.constexpr, R: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
            FEW: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ORDERED: tl.constexpr,
            EARLY: tl.constexpr):  # fmt: skip
    """x (B, C) → norm → logits (B, V) float32, and each block of R logits in short: (B, blocks).

    Of the matrix's n outputs the first V are tokens.
    """
    _start(EARLY)
    block = tl.program_id(1)
    outputs, columns = block * R + tl.arange(0, R), tl.arange(0, TILE)
    if FEW:
        # Not unpacked ahead: for the registers it takes, fewer of these many programs would run at a time.
        mine = tl.where(outputs < V, outputs, n)
        if BITS == 0:
            weights = _weights(w, mine, columns, n, C).to(tl.float32)
        else:
            weights = _codes(w, mine, n, C, TILE, BITS, _one(B))
        at = _inputs(order, C, TILE, ORDERED, BITS)
        gain = tl.load(norm + at, mask=at < C, other=0.0).to(tl.float32)
        _wait(EARLY)
        for row in tl.static_range(ROWS):
            value, factor = _normed(x, row, at, gain, eps, C)
            if BITS == 0:
                found = _product(weights, value) * factor
            else:
                found = _packed(weights, zeros, scales, mine, n, value, C, TILE, BITS, GROUP) * factor
            tl.store(logits + row * V + outputs, found, mask=outputs < V)
            _summary(found, outputs, V, row, block, _cold(rules, row, B), best, places, masses, blocks)
    else:
        _wait(EARLY)
        rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        found = tl.zeros((ROWS, R), tl.float32)
        for start in range(0, C, TILE):
            value = _given(y, order, rows, start, B, C, TILE, ORDERED)
            weights = _tile(w, groups, outputs, start, n, C, value.dtype, TILE, BITS, GROUP, _one(B))
            found = tl.dot(value, weights.T, found)
        found = found * _factor(squares, rows, B, eps, C, PARTS)
        inside = (rows[:, None] < B) & (outputs[None, :] < V)
        tl.store(logits + rows[:, None].to(tl.int64) * V + outputs[None, :], found, mask=inside)
        found = tl.where(outputs[None, :] < V, found, float("-inf"))
        top = tl.max(found, 1)
        place = tl.min(tl.where(found == top[:, None], outputs[None, :], 2147483647), 1)
        at = rows.to(tl.int64) * blocks + block
        tl.store(best + at, top, mask=rows < B)
        tl.store(places + at, place, mask=rows < B)
        mass = tl.exp((found - top[:, None]) * _cold(rules, rows, B)[:, None])
        tl.store(masses + at, tl.sum(mass, 1), mask=rows < B)


@triton.jit
def _angles(position, frequencies, scale, HALF: tl.constexpr, PAIRS: tl.constexpr, EARLY: tl.constexpr):
    """cos and sin of a place, (PAIRS,) each."""
    pairs = tl.arange(0, PAIRS)
    angle = position.to(tl.float32) * tl.load(frequencies + pairs, mask=pairs < HALF, other=0.0)
    return _now(tl.cos(angle) * scale, EARLY), _now(tl.sin(angle) * scale, EARLY)


@triton.jit
def _turn(c, s, row, cos, sin, HALF: tl.constexpr, PAIRS: tl.constexpr):
    """The angles of a step, (B, HALF): those of a row."""
    pairs = tl.arange(0, PAIRS)
    tl.store(cos + row * HALF + pairs, c, mask=pairs < HALF)
    tl.store(sin + row * HALF + pairs, s, mask=pairs < HALF)


@triton.jit
def _enter(token, row, embedding, zeros, scales, order, tokens, x, norm, y, squares, C: tl.constexpr,
           TILE: tl.constexpr, PARTS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
           ORDERED: tl.constexpr):  # fmt: skip
    """What a step begins with: a token's embedding, as `add` would leave it.

    With BITS the embedding is packed, as `_matrix` has it, of so many `tokens`; order[i]: the code of input i.
    """
    columns = tl.arange(0, TILE)
    if BITS == 0:
        found = tl.load(embedding + token * C + columns, mask=columns < C, other=0.0).to(tl.float32)
    else:
        code = columns
        if ORDERED:
            code = tl.load(order + columns, mask=columns < C, other=0)
        word = tl.load(embedding + code // (32 // BITS) * tokens + token, mask=columns < C, other=0)
        group = code // GROUP * tokens + token
        found = ((word >> (code % (32 // BITS) * BITS)) & ((1 << BITS) - 1)).to(tl.float32)
        found -= tl.load(zeros + group, mask=columns < C, other=0).to(tl.float32)
        found *= tl.load(scales + group, mask=columns < C, other=0.0).to(tl.float32)
        found = found.to(y.dtype.element_ty).to(tl.float32)  # as the model rounds it
    gain = tl.load(norm + columns, mask=columns < C, other=0.0).to(tl.float32)
    tl.store(x + row * C + columns, found, mask=columns < C)
    tl.store(y + row * C + columns, (found * gain).to(y.dtype.element_ty), mask=columns < C)
    parts = tl.arange(0, PARTS)
    tl.store(squares + row * PARTS + parts, tl.where(parts == 0, tl.sum(found * found), 0.0))


@triton.jit
def begin(tokens, positions, embedding, zeros, scales, order, V, x, norm, y, squares, frequencies, scale, cos, sin,
          C: tl.constexpr, TILE: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr, PARTS: tl.constexpr,
          BITS: tl.constexpr, GROUP: tl.constexpr, ORDERED: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    """The first of several steps: whatever came before, the rows' tokens and places say all."""
    _start(EARLY)
    _wait(EARLY)
    row = tl.program_id(0)
    c, s = _angles(tl.load(positions + row), frequencies, scale, HALF, PAIRS, False)
    _turn(c, s, row, cos, sin, HALF, PAIRS)
    _enter(tl.load(tokens + row), row, embedding, zeros, scales, order, V, x, norm, y, squares, C, TILE, PARTS, BITS,
           GROUP, ORDERED)  # fmt: skip


@triton.jit
def _next(token, position, c, s, row, tokens, positions, counters, live, chosen, step, B, embedding, zeros, scales,
          order, rows, x, norm, y, squares, cos, sin, C: tl.constexpr, TILE: tl.constexpr, HALF: tl.constexpr,
          PAIRS: tl.constexpr, PARTS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
          ORDERED: tl.constexpr):  # fmt: skip
    """Note a row's token, −1 for none, and begin its next step, at `position`, whose angles are c and s; rows from
    `live` on stay as they are."""
    tl.store(chosen + step * B + row, token)
    if row < live:
        _turn(c, s, row, cos, sin, HALF, PAIRS)
        token = tl.maximum(token, 0)
        _moved(token, position, row, tokens, positions, counters)
        _enter(token, row, embedding, zeros, scales, order, rows, x, norm, y, squares, C, TILE, PARTS, BITS, GROUP,
               ORDERED)  # fmt: skip


@triton.jit
def _place_after(positions, row, last):
    """Where a row's next token is fed."""
    return tl.minimum(tl.load(positions + row, cache_modifier=".cg") + 1, last)


@triton.jit
def _moved(token, position, row, tokens, positions, counters):
    """A row's state after its token: what it feeds next and where."""
    tl.store(tokens + row, token)
    tl.store(positions + row, position)
    tl.store(counters + row, tl.load(counters + row) + 1)


@triton.jit
def _finite(top, mass):
    return (top > float("-inf")) & (top < float("inf")) & (mass < float("inf"))  # NaN is not below anything


@triton.jit
def _likeliest(best, places, masses, blocks, row, N: tl.constexpr):
    block = tl.arange(0, N)
    at = row.to(tl.int64) * blocks + block
    found = tl.load(best + at, mask=block < blocks, other=float("-inf"))
    mass = tl.sum(tl.load(masses + at, mask=block < blocks, other=0.0), 0)
    top = tl.max(found, 0)
    token = tl.min(tl.where(found == top, tl.load(places + at, mask=block < blocks, other=2147483647), 2147483647), 0)
    return tl.where(_finite(top, mass), token, -1)


@triton.jit(do_not_specialize=["step", "B", "last"])
def greedy(best, places, masses, blocks, tokens, positions, counters, live, chosen, step, B, last, embedding, zeros,
           scales, order, V, x, norm, y, squares, frequencies, scale, cos, sin, C: tl.constexpr, TILE: tl.constexpr,
           HALF: tl.constexpr, PAIRS: tl.constexpr, PARTS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
           ORDERED: tl.constexpr, N: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    """The likeliest token of each row, the first of equals; N ≥ blocks.

    What earlier steps left it reads before it waits, as `attend_few` does.
    """
    _start(EARLY)
    row = tl.program_id(0)
    position, going = _place_after(positions, row, last), tl.load(live)
    c, s = _angles(position, frequencies, scale, HALF, PAIRS, EARLY)
    _wait_for(B, EARLY)
    token = _likeliest(best, places, masses, blocks, row, N)
    _next(token.to(tl.int64), position, c, s, row, tokens, positions, counters, going, chosen, step, B, embedding,
          zeros, scales, order, V, x, norm, y, squares, cos, sin, C, TILE, HALF, PAIRS, PARTS, BITS, GROUP,
          ORDERED)  # fmt: skip


@triton.jit
def _key(score, place):
    """Scores ≤ 0 and their places as numbers: the order of the scores, of equal ones the first place last."""
    bits = score.to(tl.int32, bitcast=True)  # of what is below zero: the smaller, the larger
    order = tl.where(bits < 0, -(bits & 0x7FFFFFFF), 0).to(tl.int64)
    return (order << 32) | (2147483647 - place).to(tl.int64)


@triton.jit
def _score(keys):
    """Inverse of `_key`: the scores."""
    order = (keys >> 32).to(tl.int32)
    return tl.where(order < 0, (-order) | -2147483648, 0).to(tl.float32, bitcast=True)


@triton.jit
def _place(keys):
    """Inverse of `_key`: the places."""
    return 2147483647 - (keys & 0xFFFFFFFF).to(tl.int32)


@triton.jit
def _floor(peaks, masses, total, k, p, least, SPAN: tl.constexpr):
    """A score below which no cut can lie, so that tokens below it are never drawn: to 1/64.

    Sixteen scores are tried at a time, three times over. Of each span of SPAN tokens it knows the largest score,
    `peaks` (M,), and the mass. Where k peaks lie above a score, the k-th token does too. The nucleus ends above a
    score that peaks of p of all mass lie above; and above one that less than 1 − p lies below: of each span at most
    its mass, and at most SPAN times what a token of that score has.
    """
    tried, visible = tl.arange(0, 16), tl.exp(peaks)
    low_k, low_p, low_q, width = -64.0, -64.0, -64.0, 64.0
    if k > 0:
        for _ in tl.range(0, 3, loop_unroll_factor=1):
            width /= 16
            enough = tl.sum((peaks[:, None] >= (low_k + width * tried)[None, :]).to(tl.int32), 0) >= k
            low_k += width * tl.sum((enough & (tried > 0)).to(tl.int32), 0)
    elif p < 1.0:  # with top-k there are few enough
        for _ in tl.range(0, 3, loop_unroll_factor=1):
            width /= 16
            above = tl.sum(tl.where(peaks[:, None] >= (low_p + width * tried)[None, :], visible[:, None], 0.0), 0)
            below = tl.sum(tl.minimum(masses[:, None], SPAN * tl.exp(low_q + width * tried)[None, :]), 0)
            low_p += width * tl.sum(((above >= p * total) & (tried > 0)).to(tl.int32), 0)
            low_q += width * tl.sum(((below <= (1 - p) * total * 0.999) & (tried > 0)).to(tl.int32), 0)
    found = tl.maximum(low_k, tl.maximum(low_p, low_q))
    found = tl.where(found > -64.0, found, float("-inf"))
    # With both, the nucleus is one of the k likeliest, whatever min-p leaves out of it then.
    return tl.where((k > 0) & (p < 1.0), found, tl.maximum(found, least))


@triton.jit
def _candidates(here, peaks, top, cold, floor, found, keys, V, CAP: tl.constexpr, CHUNK: tl.constexpr,
                R: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """The tokens of a row that score at least `floor` as `_key`s, in order of place; how many, if at most CAP.

    Only blocks of R whose largest score, `peaks` (N,), is among them are read, CHUNK logits at a time.
    """
    wanted = (peaks >= floor).to(tl.int32)
    count = tl.sum(wanted, 0)
    tl.store(found + tl.cumsum(wanted, 0) - 1, tl.arange(0, N), mask=wanted > 0)
    tl.debug_barrier()  # what other threads have written is read
    many, start = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    while (start < count) & (many <= CAP):
        which = start + tl.arange(0, CHUNK // R)
        block = tl.load(found + which, mask=which < count, other=0)
        places = block[:, None] * R + tl.arange(0, R)[None, :]
        there = (which < count)[:, None] & (places < V)
        scores = (tl.load(here + places, mask=there, other=float("-inf")) - top) * cold
        kept = tl.reshape(((scores >= floor) & there).to(tl.int32), (CHUNK,))
        at = many + tl.cumsum(kept, 0) - 1
        tl.store(keys + at, tl.reshape(_key(scores, places), (CHUNK,)), mask=(kept > 0) & (at < CAP))
        many += tl.sum(kept, 0)
        start += CHUNK // R
    tl.debug_barrier()
    return many


@triton.jit
def _ranked(keys, many, k, p, least, total, draw, N: tl.constexpr):
    """The next token of a row of at most N candidates, few enough to compare each with each."""
    order = tl.arange(0, N)
    found = tl.load(keys + order, mask=order < many, other=0)
    scores, places = tl.where(order < many, _score(found), float("-inf")), _place(found)
    shares, kept = tl.exp(scores).to(tl.float64), scores > float("-inf")
    above = scores[None, :] > scores[:, None]
    if k > 0:
        kept = kept & (tl.sum(above.to(tl.int32), 1) < k)
    if p < 1.0:
        wanted = p * total.to(tl.float64)
        if k > 0:  # otherwise the whole row counts, also what is no candidate
            wanted = p * tl.sum(tl.where(kept, shares, 0.0), 0)
        kept = kept & (tl.sum(tl.where(above, shares[None, :], 0.0), 1) < wanted)
    shares = tl.where(kept & (scores >= least), shares, 0.0)
    passed = (tl.cumsum(shares, 0) > draw * tl.sum(shares, 0)) & (shares > 0)
    return tl.min(tl.where(passed, places, 2147483647), 0)


@triton.jit
def _mass_above(logits, top, cold, floor, V, CHUNK: tl.constexpr):
    """How many tokens of a row score at least `floor`, and their mass."""
    many, mass = tl.zeros((CHUNK,), tl.int32), tl.zeros((CHUNK,), tl.float32)
    for start in range(0, V, CHUNK):
        places = start + tl.arange(0, CHUNK)
        scores = (tl.load(logits + places, mask=places < V, other=float("-inf")) - top) * cold
        kept = (scores >= floor) & (places < V)
        many += kept.to(tl.int32)
        mass += tl.where(kept, tl.exp(scores), 0.0)
    return tl.sum(many, 0), tl.sum(mass, 0)


@triton.jit
def _cut(logits, top, cold, k, p, floor, V, CHUNK: tl.constexpr):
    """The cut of a row of which too many tokens are left to sort: by halving, over the bits of a float."""
    low, high = tl.full((), -2147483647 - 1, tl.int32), tl.full((), 0, tl.int32)
    if k > 0:
        for _ in range(32):
            middle = (low.to(tl.int64) + high.to(tl.int64) + 1).to(tl.int64) >> 1
            many, _mass = _mass_above(logits, top, cold, _score(middle << 32), V, CHUNK)
            low = tl.where(many >= k, middle, low).to(tl.int32)
            high = tl.where(many >= k, high, middle - 1).to(tl.int32)
        floor = tl.maximum(floor, _score(low.to(tl.int64) << 32))
    if p < 1.0:
        kept = tl.where(k > 0, _score(low.to(tl.int64) << 32), float("-inf"))
        _many, total = _mass_above(logits, top, cold, kept, V, CHUNK)
        low, high = tl.full((), -2147483647 - 1, tl.int32), tl.full((), 0, tl.int32)
        for _ in range(32):
            middle = (low.to(tl.int64) + high.to(tl.int64) + 1).to(tl.int64) >> 1
            _many, mass = _mass_above(logits, top, cold, tl.maximum(_score(middle << 32), kept), V, CHUNK)
            enough = mass >= p * total
            low = tl.where(enough, middle, low).to(tl.int32)
            high = tl.where(enough, high, middle - 1).to(tl.int32)
        floor = tl.maximum(floor, _score(low.to(tl.int64) << 32))
    return floor


@triton.jit
def _drawn(logits, top, cold, floor, draw, V, CHUNK: tl.constexpr):
    """The token of a row at which the mass of those that score at least `floor`, in order of place, passes `draw`."""
    total = tl.zeros((), tl.float64)
    for start in range(0, V, CHUNK):
        places = start + tl.arange(0, CHUNK)
        scores = (tl.load(logits + places, mask=places < V, other=float("-inf")) - top) * cold
        total += tl.sum(tl.where((scores >= floor) & (places < V), tl.exp(scores), 0.0).to(tl.float64), 0)
    target, token, before = draw * total, tl.full((), -1, tl.int32), tl.zeros((), tl.float64)
    for start in range(0, V, CHUNK):
        places = start + tl.arange(0, CHUNK)
        scores = (tl.load(logits + places, mask=places < V, other=float("-inf")) - top) * cold
        masses = tl.where((scores >= floor) & (places < V), tl.exp(scores), 0.0).to(tl.float64)
        running = before + tl.cumsum(masses, 0)
        first = tl.min(tl.where((running > target) & (masses > 0), places, 2147483647), 0)
        token = tl.where((token < 0) & (first < 2147483647), first, token)
        before += tl.sum(masses, 0)
    return token


@triton.jit
def _sorted(keys, many, k, p, least, total, draw, V, N: tl.constexpr):
    """The next token of a row whose candidates are few enough to be sorted: `many` ≤ N."""
    order = tl.arange(0, N)
    found = tl.load(keys + order, mask=order < many, other=-9223372036854775807)
    found = tl.sort(found, descending=True)
    scores = tl.where(order < many, _score(found), float("-inf"))
    floor = tl.full((), float("-inf"), tl.float32)
    if k > 0:
        floor = tl.min(tl.where((order < k) & (order < many), scores, 0.0), 0)
        scores = tl.where(scores >= floor, scores, float("-inf"))
    shares = tl.exp(scores).to(tl.float64)
    if p < 1.0:
        wanted = p * total.to(tl.float64)
        if k > 0:  # otherwise the whole row counts, also what is no candidate
            wanted = p * tl.sum(shares, 0)
        kept = tl.maximum(tl.sum((tl.cumsum(shares, 0) - shares < wanted).to(tl.int32), 0), 1)
        floor = tl.maximum(floor, tl.min(tl.where(order < kept, scores, 0.0), 0))
    shares = tl.where(scores >= tl.maximum(floor, least), shares, 0.0)
    places = _place(found)
    target = draw * tl.sum(shares, 0)
    low, high = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32) + V - 1  # the first place up to which it passes
    while low < high:
        middle = (low + high) // 2
        passed = tl.sum(tl.where(places <= middle, shares, 0.0), 0) > target
        low, high = tl.where(passed, low, middle + 1), tl.where(passed, middle, high)
    return low


@triton.jit
def _anything(logits, best, masses, blocks, top, cold, draw, V, N: tl.constexpr, R: tl.constexpr):
    """The token that `draw` means where nothing is cut off: first its block of R, then its place in it."""
    block = tl.arange(0, N)
    weights = tl.exp((tl.load(best + block, mask=block < blocks, other=float("-inf")) - top) * cold)
    weights = (tl.load(masses + block, mask=block < blocks, other=0.0) * weights).to(tl.float64)
    running = tl.cumsum(weights, 0)
    target = draw * tl.sum(weights, 0)
    found = tl.minimum(tl.sum((running <= target).to(tl.int32), 0), blocks - 1)
    target -= tl.sum(tl.where(block < found, weights, 0.0), 0)
    places = found * R + tl.arange(0, R)
    scores = (tl.load(logits + places, mask=places < V, other=float("-inf")) - top) * cold
    inside = tl.where(places < V, tl.exp(scores), 0.0).to(tl.float64)
    at = tl.sum((tl.cumsum(inside, 0) <= target).to(tl.int32), 0)
    return tl.minimum(found * R + tl.minimum(at, R - 1), V - 1)


@triton.jit
def _random(begins, counters, row):
    """A row's next random number, as `choosing.numbers` has it."""
    place = tl.load(counters + row, cache_modifier=".cg").to(tl.uint64) + 1
    x = tl.load(begins + row).to(tl.uint64, bitcast=True) + place * 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return ((x ^ (x >> 31)) >> 32).to(tl.int64).to(tl.float64) / 4294967296.0


@triton.jit
def _rules(rules, row, V):
    """A row's temperature, top-k, top-p and min-p, as `Rows.rules` has them."""
    at = rules + row.to(tl.int64) * 7
    return tl.load(at), tl.minimum(tl.load(at + 1).to(tl.int32), V), tl.load(at + 2), tl.load(at + 3)


@triton.jit
def _token(logits, best, places, masses, blocks, kept, keys, row, heat, k, p, least, number, V, LEAST: tl.constexpr,
           SMALL: tl.constexpr, CAP: tl.constexpr, CHUNK: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
           R: tl.constexpr):  # fmt: skip
    """The token that the random `number` means by a row's rules: top-k, top-p, min-p as choosing.py defines them, one
    number, in order of place; −1 where the logits (`row`, V) are not finite.

    The head's blocks, of R logits, are looked at as M spans of N / M blocks. Of most spans not even the best token can
    be drawn, and their logits are not read.
    """
    fold, span = tl.arange(0, N // M), tl.arange(0, M)
    cold = tl.where(heat > 0, 1 / tl.where(heat > 0, heat, 1.0), 1.0)
    at, here = row.to(tl.int64) * blocks, logits + row.to(tl.int64) * V
    block = span[:, None] * (N // M) + fold[None, :]
    found = tl.load(best + at + block, mask=block < blocks, other=float("-inf"))
    share = tl.load(masses + at + block, mask=block < blocks, other=0.0)
    peaks = tl.max(found, 1)
    top = tl.max(peaks, 0)
    share = tl.sum(share * tl.exp((found - top) * cold), 1)
    peaks, total = (peaks - top) * cold, tl.sum(share, 0)
    token = tl.full((), -1, tl.int32)
    if heat == 0:
        token = _likeliest(best, places, masses, blocks, row, N)
    elif _finite(top, total):
        if (k <= 0) & (p >= 1.0) & (least == float("-inf")):
            token = _anything(here, best + at, masses + at, blocks, top, cold, number, V, N, R)
        else:
            floor = _floor(peaks, share, total, k, p, least, R * (N // M))
            mine = keys + row.to(tl.int64) * CAP
            every = (tl.reshape(found, (N,)) - top) * cold
            many = _candidates(here, every, top, cold, floor, kept + row * N, mine, V, CAP, CHUNK, R, N)
            if many <= LEAST:
                token = _ranked(mine, many, k, p, least, total, number, LEAST)
            elif many <= SMALL:
                token = _sorted(mine, many, k, p, least, total, number, V, SMALL)
            elif many <= CAP:
                token = _sorted(mine, many, k, p, least, total, number, V, CAP)
            else:
                floor = _cut(here, top, cold, k, p, least, V, 4096)
                token = _drawn(here, top, cold, floor, number, V, 4096)
    return token.to(tl.int64)


@triton.jit(do_not_specialize=["step", "B", "last"])
def draw(logits, best, places, masses, blocks, kept, keys, rules, begins, V, tokens, positions, counters, live,
         chosen, step, B, last, embedding, zeros, scales, order, vectors, x, norm, y, squares, frequencies, scale, cos,
         sin, C: tl.constexpr, TILE: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr, PARTS: tl.constexpr,
         BITS: tl.constexpr, GROUP: tl.constexpr, ORDERED: tl.constexpr, LEAST: tl.constexpr, SMALL: tl.constexpr,
         CAP: tl.constexpr, CHUNK: tl.constexpr, N: tl.constexpr, M: tl.constexpr, R: tl.constexpr,
         EARLY: tl.constexpr):  # fmt: skip
    """The next token of each row, of logits (B, V) and what `predict` says of their blocks.

    Args:
        kept: int32 (B, N), keys: int64 (B, CAP), for what a row's program tells itself.
        begins: int64 (rows,), of each row's stream of random numbers; its next is number counters[row].
    """
    _start(EARLY)
    row = tl.program_id(0)
    position, going = _place_after(positions, row, last), tl.load(live)
    c, s = _angles(position, frequencies, scale, HALF, PAIRS, EARLY)
    number = _random(begins, counters, row)
    heat, k, p, least = _rules(rules, row, V)
    _wait_for(B, EARLY)
    token = _token(logits, best, places, masses, blocks, kept, keys, row, heat, k, p, least, number, V, LEAST, SMALL,
                   CAP, CHUNK, N, M, R)  # fmt: skip
    _next(token, position, c, s, row, tokens, positions, counters, going, chosen, step, B, embedding, zeros, scales,
          order, vectors, x, norm, y, squares, cos, sin, C, TILE, HALF, PAIRS, PARTS, BITS, GROUP,
          ORDERED)  # fmt: skip


@triton.jit(do_not_specialize=["stride"])
def sum_up(found, stride, logits, rules, which, best, places, masses, blocks, V, R: tl.constexpr):
    """Logits of any kind (B, V), rows `stride` apart, as `predict` leaves them: float32, and each block in short."""
    row, block = tl.program_id(0), tl.program_id(1)
    outputs = block * R + tl.arange(0, R)
    scores = tl.load(found + row.to(tl.int64) * stride + outputs, mask=outputs < V, other=0.0).to(tl.float32)
    tl.store(logits + row.to(tl.int64) * V + outputs, scores, mask=outputs < V)
    of = tl.load(which + row)
    _summary(scores, outputs, V, row, block, _cold(rules, of, of + 1), best, places, masses, blocks)


@triton.jit(do_not_specialize=["last"])
def draw_of(logits, best, places, masses, blocks, kept, keys, rules, begins, V, which, tokens, positions,
            counters, last, chosen, LEAST: tl.constexpr, SMALL: tl.constexpr, CAP: tl.constexpr, CHUNK: tl.constexpr,
            N: tl.constexpr, M: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """As `draw`, for the rows numbered `which` (B,), all of which go on; no step begins."""
    row = tl.program_id(0)
    of = tl.load(which + row)
    number = _random(begins, counters, of)
    heat, k, p, least = _rules(rules, of, V)
    token = _token(logits, best, places, masses, blocks, kept, keys, row, heat, k, p, least, number, V, LEAST, SMALL,
                   CAP, CHUNK, N, M, R)  # fmt: skip
    tl.store(chosen + row, token)
    _moved(tl.maximum(token, 0), _place_after(positions, of, last), of, tokens, positions, counters)
