# ruff: noqa: RUF005, for Triton takes no stars in tuples
"""Triton kernels of a few rows: five a layer and the head. Their twins in kernels.py say what they compute.

A step of few rows waits for instructions and for memory's answers, not for bytes: what a kernel does after its wait
counts. So before it the weights lie in registers as tensor cores take them, eight outputs a tile; after it all inputs
are loaded at once, and one instruction multiplies eight weights a thread by four rows. They are in Gluon, Triton's own
language in which a program says what each thread holds; the shapes of this file (ROWS of the batch and R, the next
power of two; W warps, g = lane // 4, t = lane % 4):

- A matrix' inputs are shared out by PIECES, pairs (first input, S): each warp has S inputs in a row of each.
- A tile is 8 outputs times a warp's S inputs; lane 4·g + t has output g, and of each 32 inputs 8·t to 8·t + 7.
- Tensor cores multiply 16 rows by 8 columns. Both rows of an output, g and 8 + g, have half of its inputs, and the
  columns 2·m and 2·m + 1 the halves of the batch's row m, of four; two of the four products that come of it are used.
- With one or two rows the four are the same ones again.

In one file although it is long: kernels and layouts stand for each other. Imported only where there is a GPU.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

# Codes m and m + 4 of a word, for m = 0 to 3, which `few.in_tiles` makes neighbours: zero − code as exact halves,
# for bits behind a power of two are a whole number. In one piece, since a compiler takes the halves apart.
_FOUR = """{{
    .reg .b32 w<4>, minus;
    mov.b32 minus, {minus};
    shr.u32 w1, $4, 4;
    shr.u32 w2, $4, 8;
    shr.u32 w3, $4, 12;
    lop3.b32 w0, $4, 0x000F000F, {magic}, 0xEA;
    lop3.b32 w1, w1, 0x000F000F, {magic}, 0xEA;
    lop3.b32 w2, w2, 0x000F000F, {magic}, 0xEA;
    lop3.b32 w3, w3, 0x000F000F, {magic}, 0xEA;
    fma.rn.{kind}x2 $0, w0, minus, $5;
    fma.rn.{kind}x2 $1, w1, minus, $5;
    fma.rn.{kind}x2 $2, w2, minus, $5;
    fma.rn.{kind}x2 $3, w3, minus, $5;
}}"""
FOUR = gl.constexpr({gl.bfloat16: _FOUR.format(kind="bf16", minus="0xBF80BF80", magic="0x43004300"),
                     gl.float16: _FOUR.format(kind="f16", minus="0xBC00BC00", magic="0x64006400")})  # fmt: skip
# The same of the four codes of a word of 8 bits, by float32: 2^23 + zero − (2^23 + code).
_EIGHT = """{{
    .reg .b32 w<4>, two;
    .reg .f32 f<4>;
    mov.b32 two, 0x4B000000;
    prmt.b32 w0, $2, two, 0x7650;
    prmt.b32 w1, $2, two, 0x7651;
    prmt.b32 w2, $2, two, 0x7652;
    prmt.b32 w3, $2, two, 0x7653;
    mov.b32 f0, w0;
    mov.b32 f1, w1;
    mov.b32 f2, w2;
    mov.b32 f3, w3;
    sub.f32 f0, $3, f0;
    sub.f32 f1, $3, f1;
    sub.f32 f2, $3, f2;
    sub.f32 f3, $3, f3;
    cvt.rn.{kind}x2.f32 $0, f1, f0;
    cvt.rn.{kind}x2.f32 $1, f3, f2;
}}"""
EIGHT = gl.constexpr({gl.bfloat16: _EIGHT.format(kind="bf16"), gl.float16: _EIGHT.format(kind="f16")})

ROOM = gl.constexpr(1024)  # behind a row that is read in another order, where pieces go on: eight warps' largest tiles


# ── layouts ────────────────────────────────────────────────────────────────────────────────────────────────────────
@gluon.constexpr_function
def _along(rank, axis, *powers):
    """Of a layout over so many axes: how each bit of a register's, lane's or warp's number moves along one of them."""
    return [[power if axis == other else 0 for other in range(rank)] for power in powers]


@gluon.constexpr_function
def _powers(n):
    return [1 << bit for bit in range(n.bit_length() - 1)]


@gluon.constexpr_function
def _nothing(rank, W):
    """All warps alike."""
    return [[0] * rank] * len(_powers(W))


@gluon.constexpr_function
def _cores(W):
    """What the tensor cores leave, (W, 16, 8)."""
    return gl.NVMMADistributedLayout([2, 0], [W, 1, 1], [1, 16, 8])


@gluon.constexpr_function
def _rows(W, n, D):
    """(W, n rows, D numbers), of which a thread has eight side by side: a tile, or vectors of a head."""
    return gl.DistributedLinearLayout(_along(3, 2, 1, 2, 4, *_powers(D)[5:]) + _along(3, 1, *_powers(n)[3:]),
                                      _along(3, 2, 8, 16) + _along(3, 1, 1, 2, 4), _along(3, 0, *_powers(W)), [],
                                      [W, n, D])  # fmt: skip


@gluon.constexpr_function
def _columns(W, S, rows, ordered):
    """(W, 4 / rows, rows, S inputs), rows 1, 2 or 4: pairs of columns. Of each eight inputs the even column has the
    pairs 0 and 2, the odd one 1 and 3. Ordered: they lie as `_place` says, what a thread takes side by side."""
    if ordered:
        own, lanes = _powers(S // 8), [S // 4, S // 2, S // 8]
    else:
        own, lanes = [1, 4, *_powers(S)[5:]], [8, 16, 2]
    pairs = _along(4, 2, *_powers(rows)) + _along(4, 1, *_powers(4 // rows))
    return gl.DistributedLinearLayout(_along(4, 3, *own), _along(4, 3, *lanes) + pairs, _along(4, 0, *_powers(W)), [],
                                      [W, 4 // rows, rows, S])  # fmt: skip


@gluon.constexpr_function
def _in_a_row(W, S, rows):
    """(rows, W · S): what a thread has of them by `_columns`, not ordered."""
    pairs = (_along(2, 0, *_powers(rows)) + [[0, 0]] * 2)[:2]
    return gl.DistributedLinearLayout(_along(2, 1, 1, 4, *_powers(S)[5:]), _along(2, 1, 8, 16, 2) + pairs,
                                      _along(2, 1, *[S * power for power in _powers(W)]), [],
                                      [rows, W * S])  # fmt: skip


@gluon.constexpr_function
def _products(W):
    """(W, 8 outputs, 4 rows)."""
    return gl.DistributedLinearLayout([], _along(3, 2, 1, 2) + _along(3, 1, 1, 2, 4), _along(3, 0, *_powers(W)), [],
                                      [W, 8, 4])  # fmt: skip


@gluon.constexpr_function
def _dealt(rank, W, outputs, rows):
    """Who has which of some outputs of all rows: registers, lanes, warps. Lanes have the outputs, warps the rows; the
    last lanes, where they are left, more rows; a thread the rest."""
    room = len(_powers(W))
    left = max(0, 5 - len(outputs))
    more, rest = rows[room : room + left], rows[room + left :]
    lanes = outputs[:5] + [[0] * rank] * (left - len(more)) + more
    return outputs[5:] + rest, lanes, (rows + [[0] * rank] * room)[:room]


@gluon.constexpr_function
def _sums(tiles, W, R, own):
    """(tiles, W, 8, R): what all warps found of an output is one thread's, own: the same output of all tiles is."""
    number, output = _along(4, 0, *_powers(tiles)), _along(4, 2, 1, 2, 4)
    registers, lanes, warps = _dealt(4, W, output if own else output + number, _along(4, 3, *_powers(R)))
    registers = _along(4, 1, *_powers(W)) + (number if own else []) + registers
    return gl.DistributedLinearLayout(registers, lanes, warps, [], [tiles, W, 8, R])


@gluon.constexpr_function
def _spread(n, R, W):
    """(n, R): outputs as `_sums` leaves them."""
    registers, lanes, warps = _dealt(2, W, _along(2, 0, *_powers(n)), _along(2, 1, *_powers(R)))
    return gl.DistributedLinearLayout(registers, lanes, warps, [], [n, R])


@gluon.constexpr_function
def _beside(n, R, W, parts):
    """(parts, R), of which a sum over the parts is where n outputs of a row are by `_spread`. Parts have lanes side by
    side: the compiler adds up no others rightly."""
    registers, lanes, warps = _dealt(2, W, [[0, 0]] * min(5, len(_powers(n))), _along(2, 1, *_powers(R)))
    bits, free = _along(2, 0, *_powers(parts)), lanes.count([0, 0])
    own = max(0, len(bits) - free)
    lanes = (bits[own:] + [[0, 0]] * free)[:free] + lanes[free:]
    return gl.DistributedLinearLayout(bits[:own] + registers, lanes, warps, [], [parts, R])


@gluon.constexpr_function
def _in_memory(W, n, side):
    """(W, n / side, 32 lanes, side): n packed words of a lane, so many side by side."""
    return gl.DistributedLinearLayout(_along(4, 3, *_powers(side)) + _along(4, 1, *_powers(n // side)),
                                      _along(4, 2, 1, 2, 4, 8, 16), _along(4, 0, *_powers(W)), [],
                                      [W, n // side, 32, side])  # fmt: skip


@gluon.constexpr_function
def _in_words(W, I, T):
    """(W, I times 32 inputs, T words of 8 codes, g, t) of a packed tile."""
    return gl.DistributedLinearLayout(_along(5, 2, *_powers(T)) + _along(5, 1, *_powers(I)),
                                      _along(5, 4, 1, 2) + _along(5, 3, 1, 2, 4), _along(5, 0, *_powers(W)), [],
                                      [W, I, T, 8, 4])  # fmt: skip


@gluon.constexpr_function
def _shares(splits, heads, D, W):
    """(splits, heads, D): a thread has some numbers of a head side by side, of all splits."""
    bits = _along(3, 2, *_powers(D)) + _along(3, 1, *_powers(heads))
    each = max(0, len(bits) - 5 - len(_powers(W)))
    bits = bits + [[0] * 3] * (each + 5 + len(_powers(W)) - len(bits))
    return gl.DistributedLinearLayout(bits[:each] + _along(3, 0, *_powers(splits)), bits[each : each + 5],
                                      bits[each + 5 :], [], [splits, heads, D])  # fmt: skip


@gluon.constexpr_function
def _scored(W, n):
    """(W, 8 rows, n) of what tensor cores leave: lane 4·g + t has 2·t and 2·t + 1 of each eight of row g."""
    return gl.DistributedLinearLayout(_along(3, 2, 1, *_powers(n)[3:]), _along(3, 2, 2, 4) + _along(3, 1, 1, 2, 4),
                                      _along(3, 0, *_powers(W)), [], [W, 8, n])  # fmt: skip


@gluon.constexpr_function
def _gathered(W, D, *between):
    """(W, D), or with an axis of one between them: what all warps found of a number is one thread's."""
    rank, room = 2 + len(between), 5 + len(_powers(W))
    bits = _along(rank, rank - 1, *_powers(D))
    own, bits = bits[room:], (bits + [[0] * rank] * room)[:room]
    return gl.DistributedLinearLayout(own + _along(rank, 0, *_powers(W)), bits[:5], bits[5:], [], [W, *between, D])


@gluon.constexpr_function
def _told(W):
    """(W, 1): every thread has all."""
    return gl.DistributedLinearLayout(_along(2, 0, *_powers(W)), [[0, 0]] * 5, _nothing(2, W), [], [W, 1])


@gluon.constexpr_function
def _flat(rank):
    """Shared memory in the order of the axes."""
    return gl.SwizzledSharedLayout(1, 1, 1, list(reversed(range(rank))))


# ── waiting ────────────────────────────────────────────────────────────────────────────────────────────────────────
@gluon.jit
def _start(EARLY: gl.constexpr):
    """Let the next kernel start, as in kernels.py."""
    if EARLY:
        gl.inline_asm_elementwise("griddepcontrol.launch_dependents; // $0", "=r", [], gl.int32, False, 1)


@gluon.jit
def _wait(B, EARLY: gl.constexpr):
    """Wait for all before this kernel. B is 1, which the compiler must not know: over a loop it moves little."""
    if EARLY:
        for _ in range(B):
            gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], gl.int32, False, 1)


@gluon.jit
def _wait_with(tiles, B, BITS: gl.constexpr, EARLY: gl.constexpr):
    """`_wait` with tiles in registers. Those of 8 bits the compiler would unpack afterwards; so the loop turns their
    signs, with which they come."""
    if BITS != 8:
        _wait(B, EARLY)
        return tiles
    else:
        for _ in range(B):
            tiles = _negated(tiles)
            if EARLY:
                gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], gl.int32, False, 1)
        return tiles


@gluon.jit
def _negated(tiles):
    found = ()
    for number in gl.static_range(len(tiles)):
        found = found + (_minus(tiles[number]),)
    return found


@gluon.jit
def _minus(tile):
    return gl.inline_asm_elementwise("xor.b32 $0, $1, 0x80008000;", "=r,r", [tile], tile.dtype, False, 2)


@gluon.jit
def _halves(tiles):
    first, second = (), ()
    for number in gl.static_range(len(tiles) // 2):
        first, second = first + (tiles[number],), second + (tiles[len(tiles) // 2 + number],)
    return first, second


@gluon.jit
def _loaded(B, EARLY: gl.constexpr):
    """Between loads, through `_now`, and their use: the compiler would begin some only when others have come."""
    if EARLY:
        for _ in range(B):
            gl.inline_asm_elementwise('.pragma "nounroll"; griddepcontrol.wait; // $0', "=r", [], gl.int32, False, 1)


@gluon.jit
def _now(found):
    """The same, here and not when it is needed."""
    if found.dtype.primitive_bitwidth == 16:
        return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [found], found.dtype, False, 2)
    else:
        return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [found], found.dtype, False, 1)


# ── weights ────────────────────────────────────────────────────────────────────────────────────────────────────────
@gluon.jit
def _dense(w, row, last, start: gl.constexpr, k: gl.constexpr, W: gl.constexpr, S: gl.constexpr):
    """Rows from `row` to `last` of a matrix (n, k), beyond it the last again, as the tensor cores' left side."""
    layout: gl.constexpr = _rows(W, 8, S)
    warp = gl.arange(0, W, gl.SliceLayout(1, gl.SliceLayout(2, layout)))[:, None, None]
    inputs = start + warp * S + gl.arange(0, S, gl.SliceLayout(0, gl.SliceLayout(1, layout)))[None, None, :]
    rows = gl.minimum(row + gl.arange(0, 8, gl.SliceLayout(0, gl.SliceLayout(2, layout))), last)[None, :, None]
    if start + W * S > k:
        tile = gl.load(w + rows * k + inputs, mask=(inputs < k) & (rows >= 0), other=0.0)
    else:
        tile = gl.load(w + rows * k + inputs)
    tile = gl.reshape(tile, [W, 8, S // 32, 4, 2, 2, 2])  # g, i, t, b, c, l
    tile = gl.reshape(gl.permute(tile, [0, 5, 1, 2, 4, 3, 6]), [W, 16, S // 2])  # row 8·c + g
    return gl.convert_layout(tile, gl.DotOperandLayout(0, _cores(W), 2), assert_trivial=True)


@gluon.constexpr_function
def _end(pieces, W):
    """Behind the last input."""
    return pieces[-1][0] + W * pieces[-1][1]


@gluon.jit
def _stored(w, both, block, PIECES: gl.constexpr, piece: gl.constexpr, W: gl.constexpr, BITS: gl.constexpr):
    """A piece of block `block` as `few.in_tiles` left it: words by `_in_words`, scale and zero of a group (W, 8)."""
    S: gl.constexpr = PIECES[piece][1]
    T: gl.constexpr = BITS // 4
    n: gl.constexpr = S // 32 * T
    side: gl.constexpr = 4 if n >= 4 else n
    of: gl.constexpr = _in_memory(W, n, side)
    warp = gl.arange(0, W, gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, of))))[:, None, None, None]
    number = gl.arange(0, n // side, gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, of))))[None, :, None, None]
    lane = gl.arange(0, 32, gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(3, of))))[None, None, :, None]
    beside = gl.arange(0, side, gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, of))))[None, None, None, :]
    first = w + block * (_end(PIECES, W) * BITS // 4) + PIECES[piece][0] * BITS // 4
    words = gl.load(first + warp * (n * 32) + number * (32 * side) + lane * side + beside)
    words = gl.permute(gl.reshape(words, [W, n // side, 8, 4, side]), [0, 1, 4, 2, 3])
    words = gl.convert_layout(gl.reshape(words, [W, S // 32, T, 8, 4]), _in_words(W, S // 32, T), assert_trivial=True)
    group: gl.constexpr = gl.SliceLayout(2, _products(W))
    warp, output = gl.arange(0, W, gl.SliceLayout(1, group)), gl.arange(0, 8, gl.SliceLayout(0, group))
    both += (block * len(PIECES) + piece) * (W * 8)
    return words, gl.load(both + warp[:, None] * 8 + output[None, :])


@gluon.jit
def _unpacked(words, groups, BITS: gl.constexpr, KIND: gl.constexpr):
    """Zeros less codes, exactly, as the tensor cores' left side."""
    W: gl.constexpr = words.shape[0]
    I: gl.constexpr = words.shape[1]
    of: gl.constexpr = _in_words(W, I, BITS // 4)
    zero = (groups >> 16).to(gl.int16).to(gl.float16, bitcast=True).to(gl.float32)
    if BITS == 8:
        zero += 8388608.0
    else:
        base: gl.constexpr = 128.0 if gl.bfloat16 == KIND else 1024.0
        bits = (base + zero).to(KIND).to(gl.int16, bitcast=True).to(gl.int32) & 0xFFFF
        zero = (bits << 16) | bits
    zero = gl.convert_layout(zero, gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(4, of))), assert_trivial=True)
    words, zero = gl.broadcast(words, zero[:, None, :][:, :, None, :][:, :, :, :, None])
    if BITS == 4:
        a, b, c, d = gl.inline_asm_elementwise(FOUR[KIND], "=r,=r,=r,=r,r,r", [words, zero], (gl.int32,) * 4, False, 1)
        pairs = gl.permute(gl.join(gl.join(a, b), gl.join(c, d)), [0, 1, 6, 3, 4, 5, 2])  # W, i, b, g, t, c, 1
        pairs = gl.reshape(pairs, [W, I, 2, 8, 4, 2])
    else:
        a, b = gl.inline_asm_elementwise(EIGHT[KIND], "=r,=r,r,f", [words, zero], (gl.int32,) * 2, False, 1)
        pairs = gl.join(a, b)
    low = pairs.to(gl.int16).to(KIND, bitcast=True)
    high = (pairs >> 16).to(gl.int16).to(KIND, bitcast=True)
    tile = gl.permute(gl.join(low, high), [0, 5, 3, 1, 2, 4, 6])  # W, c, g, i, b, t, l
    tile = gl.reshape(tile, [W, 16, 16 * I])
    return gl.convert_layout(tile, gl.DotOperandLayout(0, _cores(W), 2), assert_trivial=True)


@gluon.jit
def _scale(groups):
    """(W, 8, 1)"""
    return groups.to(gl.int16).to(gl.float16, bitcast=True).to(gl.float32)[:, :, None]


@gluon.jit
def _held(w, both, row, block, k: gl.constexpr, PIECES: gl.constexpr, W: gl.constexpr, BITS: gl.constexpr,
          KIND: gl.constexpr):  # fmt: skip
    """Eight outputs, of a dense matrix from `row` on, of a packed one block `block`: a tile a piece, and their scales.

    What follows is `_wait_with`.
    """
    tiles, scales = (), ()
    for piece in gl.static_range(len(PIECES)):
        if BITS == 0:
            tiles = tiles + (_dense(w, row, row + 7, PIECES[piece][0], k, W, PIECES[piece][1]),)
            scales = scales + (1.0,)
        else:
            words, groups = _stored(w, both, block, PIECES, piece, W, BITS)
            tiles = tiles + (_unpacked(words, groups, BITS, KIND),)
            scales = scales + (_scale(groups) * (1 if BITS == 8 else -1),)
    return tiles, scales


# ── inputs and products ────────────────────────────────────────────────────────────────────────────────────────────
@gluon.jit
def _right(values, ORDERED: gl.constexpr):
    """Values (W, rows, S) of the same inputs, of up to four rows, as the tensor cores' right side."""
    W: gl.constexpr = values.shape[0]
    rows: gl.constexpr = values.shape[1]
    S: gl.constexpr = values.shape[2]
    every = gl.zeros([W, 4 // rows, rows, S], values.dtype, _columns(W, S, rows, ORDERED))
    values, _ = gl.broadcast(values[:, None, :, :], every)
    if ORDERED:
        values = gl.reshape(values, [W, 4, 4, 2, S // 32, 2, 2])  # m, t, c, i, b, l
        values = gl.permute(values, [0, 4, 5, 2, 6, 1, 3])
    else:
        values = gl.reshape(values, [W, 4, S // 32, 4, 2, 2, 2])  # m, i, t, b, c, l
        values = gl.permute(values, [0, 2, 4, 3, 6, 1, 5])
    values = gl.reshape(values, [W, S // 2, 8])  # column 2·m + c
    return gl.convert_layout(values, gl.DotOperandLayout(1, _cores(W), 2), assert_trivial=True)


@gluon.constexpr_function
def _power(rows):
    """The layouts' rows, R: the last of ROWS stands for those that there are not."""
    return 1 << (rows - 1).bit_length()


@gluon.constexpr_function
def _fours(rows):
    """What the tensor cores take at a time: (first row, rows)."""
    return tuple((first, min(4, _power(rows))) for first in range(0, _power(rows), 4))


@gluon.jit
def _row(ROWS: gl.constexpr, of: gl.constexpr):
    """Numbers of all rows in layout `of`."""
    return gl.minimum(gl.arange(0, _power(ROWS), of), ROWS - 1)


@gluon.jit
def _inputs(y, k: gl.constexpr, PIECES: gl.constexpr, W: gl.constexpr, ORDERED: gl.constexpr, ROWS: gl.constexpr):
    """What the tiles are multiplied by, of y (ROWS, k): all pieces of four rows, then those of the next. ORDERED: y
    lies as `_place` says, ROOM more in a row, zeros where k ends."""
    found = ()
    for four in gl.static_range(len(_fours(ROWS))):
        for piece in gl.static_range(len(PIECES)):
            part = _piece(y, PIECES[piece][0], k, W, PIECES[piece][1], ORDERED, ROWS, four)
            found = found + (_right(part, ORDERED),)
    return found


@gluon.jit
def _piece(y, start: gl.constexpr, k: gl.constexpr, W: gl.constexpr, S: gl.constexpr, ORDERED: gl.constexpr,
           ROWS: gl.constexpr, four: gl.constexpr):  # fmt: skip
    """Each warp's S values from `start` on of up to four rows, (W, rows, S)."""
    rows: gl.constexpr = _fours(ROWS)[four][1]
    of: gl.constexpr = gl.SliceLayout(1, _columns(W, S, rows, ORDERED))
    at = start + gl.arange(0, W, gl.SliceLayout(1, gl.SliceLayout(2, of)))[:, None, None] * S
    at += gl.arange(0, S, gl.SliceLayout(0, gl.SliceLayout(1, of)))[None, None, :]
    row = _fours(ROWS)[four][0] + gl.arange(0, rows, gl.SliceLayout(0, gl.SliceLayout(2, of)))[None, :, None]
    y += gl.minimum(row, ROWS - 1) * (k + ROOM if ORDERED else k)
    if start + W * S > k and not ORDERED:
        return _now(gl.load(y + at, mask=at < k, other=0.0))
    return _now(gl.load(y + at))


@gluon.jit
def _inputs_of(room, PIECES: gl.constexpr, W: gl.constexpr, ROWS: gl.constexpr):
    """The same of values in shared memory, in their order."""
    found = ()
    for four in gl.static_range(len(_fours(ROWS))):
        for piece in gl.static_range(len(PIECES)):
            part = _piece_of(room, PIECES[piece][0], W, PIECES[piece][1], ROWS, four)
            found = found + (_right(part, False),)
    return found


@gluon.jit
def _piece_of(room, start: gl.constexpr, W: gl.constexpr, S: gl.constexpr, ROWS: gl.constexpr, four: gl.constexpr):
    rows: gl.constexpr = _fours(ROWS)[four][1]
    found = room.slice(_fours(ROWS)[four][0], rows, 0).slice(start, W * S, 1).load(_in_a_row(W, S, rows))
    found = gl.permute(gl.reshape(found, [rows, W, S]), [1, 0, 2])
    return gl.convert_layout(found, gl.SliceLayout(1, _columns(W, S, rows, False)), assert_trivial=True)


@gluon.jit
def _place(block, PIECES: gl.constexpr, of: gl.constexpr):
    """Where numbers 8 · block to 8 · block + 7 lie for who reads them by PIECES, (8,): of a warp's numbers those at
    i, t, b, c, l (as bits) lie at t, c, i, b, l."""
    start, size = block * 0, block * 0 + 32
    for piece in gl.static_range(len(PIECES)):
        start = gl.where(block * 8 >= PIECES[piece][0], PIECES[piece][0], start)
        size = gl.where(block * 8 >= PIECES[piece][0], PIECES[piece][1], size)
    of_warp = (block * 8 - start) % size
    first = block * 8 - of_warp + of_warp // 8 % 4 * (size // 4) + of_warp // 32 * 4
    number = gl.arange(0, 8, of)
    return _now(first + number // 2 % 2 * (size // 8) + number // 4 * 2 + number % 2)


@gluon.jit
def _multiplied(tiles, scales, values, PIECES: gl.constexpr, W: gl.constexpr, BITS: gl.constexpr):
    """The tiles times their inputs: each warp's part of eight sums of all rows, (W, 8, 4 or more)."""
    sums = ()
    for four in gl.static_range(len(values) // len(PIECES)):
        total = gl.zeros([W, 8, 4], gl.float32, _products(W))
        for piece in gl.static_range(len(PIECES)):
            right = values[four * len(PIECES) + piece]
            found = mma_v2(tiles[piece], right, gl.zeros([W, 16, 8], gl.float32, _cores(W)))
            found = gl.permute(gl.reshape(found, [W, 2, 8, 4, 2]), [0, 2, 3, 1, 4])  # W, g, m, row's, column's half
            even, odd = gl.split(found)
            first, _ = gl.split(even)
            _, second = gl.split(odd)
            found = gl.convert_layout(first + second, _products(W), assert_trivial=True)
            if BITS == 0:
                total += found
            else:
                total += found * scales[piece]
        sums = sums + (total,)
    many: gl.constexpr = len(sums)
    return gl.reshape(gl.permute(gl.reshape(_stacked(sums), [W, 8, 4, many]), [0, 1, 3, 2]), [W, 8, 4 * many])


@gluon.jit
def _stacked(parts):
    """So many as are a power of two, along new axes at the end, the last of which tells neighbours apart."""
    if len(parts) == 1:
        return parts[0]
    else:
        even, odd = (), ()
        for number in gl.static_range(len(parts) // 2):
            even, odd = even + (parts[2 * number],), odd + (parts[2 * number + 1],)
        return gl.join(_stacked(even), _stacked(odd))


@gluon.jit
def _added(parts, OWN: gl.constexpr, W: gl.constexpr, R: gl.constexpr):
    """All warps' parts of so many tiles, (W, 8, R or more) each, together: (tiles, 8, R), by `_sums`."""
    tiles: gl.constexpr = len(parts)
    many: gl.constexpr = parts[0].shape[2]
    stacked = gl.permute(gl.reshape(_stacked(parts), [W, 8, many, tiles]), [3, 0, 1, 2])
    room = gl.allocate_shared_memory(gl.float32, [tiles, W, 8, many], _flat(4), stacked)
    return gl.sum(room.slice(0, R, 3).load(_sums(tiles, W, R, OWN)), 1)


@gluon.jit
def _eight(parts, W: gl.constexpr, R: gl.constexpr):
    """Of one tile, (8, R)."""
    found = gl.reshape(_added((parts,), True, W, R), [8, R])
    return gl.convert_layout(found, _spread(8, R, W), assert_trivial=True)


@gluon.jit
def _eight_of_both(first, second, W: gl.constexpr, R: gl.constexpr):
    """Of two, (8, R) each, of which a thread has the same output."""
    a, b = gl.split(gl.permute(_added((first, second), True, W, R), [1, 2, 0]))
    return (gl.convert_layout(a, _spread(8, R, W), assert_trivial=True),
            gl.convert_layout(b, _spread(8, R, W), assert_trivial=True))  # fmt: skip


@gluon.jit
def _squares(squares, PARTS: gl.constexpr, n: gl.constexpr, W: gl.constexpr, ROWS: gl.constexpr):
    """The parts of each row's Σ x², (PARTS, R), beside n outputs."""
    of: gl.constexpr = _beside(n, _power(ROWS), W, PARTS)
    part, row = gl.arange(0, PARTS, gl.SliceLayout(1, of))[:, None], _row(ROWS, gl.SliceLayout(0, of))[None, :]
    return _now(gl.load(squares + row * PARTS + part))


@gluon.jit
def _factor(squares, eps, C: gl.constexpr, n: gl.constexpr, W: gl.constexpr):
    """1 / rms of each row (1, R), by which sums of x times the norm's weight are multiplied: they need not wait."""
    of: gl.constexpr = gl.SliceLayout(0, _spread(n, squares.shape[1], W))
    return gl.convert_layout(gl.rsqrt(gl.sum(squares, 0) / C + eps), of, assert_trivial=True)[None, :]


# ── kernels ────────────────────────────────────────────────────────────────────────────────────────────────────────
@gluon.jit(do_not_specialize=["B"])
def project(y, squares, wq, wk, wv, words, both, cos, sin, positions, q, keys, values, B, slots, eps, C: gl.constexpr,
            D: gl.constexpr, H: gl.constexpr, K: gl.constexpr, PARTS: gl.constexpr, PIECES: gl.constexpr,
            W: gl.constexpr, BITS: gl.constexpr, ROWS: gl.constexpr, FIRST: gl.constexpr,
            EARLY: gl.constexpr):  # fmt: skip
    """y (ROWS, C) → q, rotated; k, rotated, and v into the cache. A program has 8 pairs (i, i + D/2) of a head. The
    FIRST of a step finds y in its order, and lets `attend` start only when all before it has ended."""
    _start(EARLY and not FIRST)
    half: gl.constexpr = D // 2
    kind: gl.constexpr = y.dtype.element_ty
    R: gl.constexpr = _power(ROWS)
    of_outputs: gl.constexpr = gl.SliceLayout(1, _spread(8, R, W))
    block = gl.program_id(0)
    which, part = block // (half // 8), block % (half // 8)
    of = gl.where(which < H, 0, gl.where(which < H + K, 1, 2))
    head = gl.where(which < H, which, gl.where(which < H + K, which - H, which - H - K))
    w = wq
    if of == 1:
        w = wk
    if of == 2:
        w = wv
    if BITS != 0:
        w = words
    output = head * D + part * 8
    lower, lower_scales = _held(w, both, output, 2 * block, C, PIECES, W, BITS, kind)
    upper, upper_scales = _held(w, both, output + half, 2 * block + 1, C, PIECES, W, BITS, kind)
    pairs = (part * 8 + gl.arange(0, 8, of_outputs))[:, None]
    row = _row(ROWS, gl.SliceLayout(0, _spread(8, R, W)))[None, :]
    lower, upper = _halves(_wait_with(lower + upper, B, BITS, EARLY))
    _start(EARLY and FIRST)
    given = _inputs(y, C, PIECES, W, not FIRST, ROWS)
    slot = _now(gl.load(positions + row).to(gl.int32))
    c, s = _now(gl.load(cos + row * half + pairs)), _now(gl.load(sin + row * half + pairs))
    parts = _squares(squares, PARTS, 8, W, ROWS)
    _loaded(B, EARLY)
    if of == 2:
        c, s = gl.full_like(c, 1.0), gl.full_like(s, 0.0)
    factor = _factor(parts, eps, C, 8, W)
    a, b = _eight_of_both(_multiplied(lower, lower_scales, given, PIECES, W, BITS),
                          _multiplied(upper, upper_scales, given, PIECES, W, BITS), W, R)  # fmt: skip
    a, b = a * factor, b * factor
    a, b = a * c - b * s, b * c + a * s
    at = q + (row * H + head) * D + pairs
    if of > 0:
        cache = keys
        if of == 2:
            cache = values
        at = cache + ((row * K + head).to(gl.int64) * slots + slot) * D + pairs
    gl.store(at, a.to(kind))
    gl.store(at + half, b.to(kind))


@gluon.jit
def _across(rows):
    """Rows (W, n, D) with their numbers in the order in which tensor cores take them, for all that is loaded so."""
    W: gl.constexpr = rows.shape[0]
    n: gl.constexpr = rows.shape[1]
    D: gl.constexpr = rows.shape[2]
    rows = gl.reshape(rows, [W, n, D // 32, 4, 2, 2, 2])
    return gl.reshape(gl.permute(rows, [0, 1, 2, 4, 5, 3, 6]), [W, n, D])


@gluon.jit
def _kept(cache, base, at, last, D: gl.constexpr, W: gl.constexpr, n: gl.constexpr):
    """Slots `at` (W, n) of a head of the cache, (W, n, D), zero from `last` on."""
    place = gl.arange(0, D, gl.SliceLayout(0, gl.SliceLayout(1, _rows(W, n, D))))[None, None, :]
    there = (at < last)[:, :, None] & (place >= 0)
    return gl.load(cache + base + at[:, :, None] * D + place, mask=there, other=0.0, cache_modifier=".cg")


@gluon.jit
def _turned(room, value):
    """Values (W, n, D) as the tensor cores' right side, by way of shared memory."""
    room.store(value)
    return room.load(gl.DotOperandLayout(1, _cores(value.shape[0]), 2))


@gluon.jit
def _product(left, right):
    """(W, 16, k) · (W, k, n), of which all rows of the left side are alike: (W, 8, n), all rows alike."""
    W: gl.constexpr = right.shape[0]
    n: gl.constexpr = right.shape[2]
    found = mma_v2(left, right, gl.zeros([W, 16, n], gl.float32, _cores(W)))
    found, _ = gl.split(gl.permute(gl.reshape(found, [W, 2, 8, n]), [0, 2, 3, 1]))
    return gl.convert_layout(found, _scored(W, n), assert_trivial=True)


@gluon.jit
def _scores(query, key):
    """A query times keys (W, n, D): (W, 8, n)."""
    right: gl.constexpr = gl.DotOperandLayout(1, _cores(key.shape[0]), 2)
    return _product(query, gl.convert_layout(gl.permute(_across(key), [0, 2, 1]), right, assert_trivial=True))


@gluon.jit
def _seen(query, key, value, start, last, scale, D: gl.constexpr):
    """What each warp sees of slots from `start` on that are before `last`: the largest score (W, 8), Σ of weights, and
    values by them (W, 8, D); rows are alike. Scores are powers of two."""
    W: gl.constexpr = key.shape[0]
    n: gl.constexpr = key.shape[1]
    of: gl.constexpr = _scored(W, n)
    warp = gl.arange(0, W, gl.SliceLayout(1, gl.SliceLayout(2, of)))[:, None, None]
    slot = gl.arange(0, n, gl.SliceLayout(0, gl.SliceLayout(1, of)))[None, None, :]
    scores = gl.where(start + warp * n + slot < last, _scores(query, key) * scale, float("-inf"))
    peak = gl.max(scores, 2)
    weights = gl.exp2(scores - gl.where(peak > float("-inf"), peak, 0.0)[:, :, None])  # a warp without slots
    kind: gl.constexpr = value.dtype
    both = gl.permute(gl.join(weights.to(kind), gl.zeros([W, 8, n], kind, of)), [0, 3, 1, 2])
    left = gl.convert_layout(gl.reshape(both, [W, 16, n]), gl.DotOperandLayout(0, _cores(W), 2), assert_trivial=True)
    found = _product(left, value)
    rows: gl.constexpr = gl.SliceLayout(2, _scored(W, D))
    total = gl.convert_layout(gl.sum(weights, 2), rows, assert_trivial=True)
    return gl.convert_layout(peak, rows, assert_trivial=True), total, found


@gluon.jit
def _told_by(room, W: gl.constexpr, D: gl.constexpr):
    """What each warp found, (W, 8), rows alike, to every thread: (W,)."""
    found = gl.reshape(room.slice(0, 1, 1).load(_told(W)), [W])
    return gl.convert_layout(found, gl.SliceLayout(1, _gathered(W, D)), assert_trivial=True)


@gluon.jit(do_not_specialize=["B"])
def attend(q, keys, values, positions, out, peaks, sums, B, slots, scale, D: gl.constexpr, H: gl.constexpr,
           K: gl.constexpr, STEP: gl.constexpr, SPLITS: gl.constexpr, W: gl.constexpr,
           EARLY: gl.constexpr):  # fmt: skip
    """Each row's token's attention; a program has a query head and a share of the slots, and holds before it waits what
    earlier tokens left in the first STEP of them. As `kernels.attend_few`, but peaks (rows, SPLITS, H) are of
    scores by powers of two."""
    _start(EARLY)
    n: gl.constexpr = STEP // W
    kind: gl.constexpr = q.dtype.element_ty
    of_slots: gl.constexpr = gl.SliceLayout(2, _rows(W, n, D))
    of_query: gl.constexpr = gl.SliceLayout(1, _rows(W, 16, D))
    after: gl.constexpr = _gathered(W, D)
    head, split, row = gl.program_id(0), gl.program_id(1), gl.program_id(2)
    newest = gl.load(positions + row, cache_modifier=".cg").to(gl.int32)
    share = (newest // (SPLITS * STEP) + 1) * STEP
    first = split * share
    last = gl.minimum(newest, first + share)  # without the newest
    base = (row * K + head // (H // K)).to(gl.int64) * slots * D
    q += row * (H * D)
    at = first + gl.arange(0, W, gl.SliceLayout(1, of_slots))[:, None] * n
    at += gl.arange(0, n, gl.SliceLayout(0, of_slots))[None, :]
    key = _kept(keys, base, at, last, D, W, n)
    room = gl.allocate_shared_memory(kind, [W, n, D], gl.SwizzledSharedLayout(8, 1, 8, [2, 1, 0]))
    value = _turned(room, _kept(values, base, at, last, D, W, n))
    width = gl.arange(0, D, gl.SliceLayout(0, of_query))[None, :]
    width += gl.arange(0, W, gl.SliceLayout(1, of_query))[:, None] * 0
    across = gl.arange(0, D, gl.SliceLayout(0, after))
    _wait(B, EARLY)
    query, new_key = _now(gl.load(q + head * D + width)), _now(gl.load(keys + base + newest * D + width))
    new_value = _now(gl.load(values + base + newest * D + across).to(gl.float32))
    _loaded(B, EARLY)
    query, _ = gl.broadcast(query[:, None, :], gl.zeros([W, 16, D], kind, _rows(W, 16, D)))
    query = gl.convert_layout(_across(query), gl.DotOperandLayout(0, _cores(W), 2), assert_trivial=True)
    new_key = gl.convert_layout(new_key, gl.SliceLayout(1, _rows(W, 8, D)), assert_trivial=True)
    new_key, _ = gl.broadcast(new_key[:, None, :], gl.zeros([W, 8, D], kind, _rows(W, 8, D)))
    scale = scale * 1.4426950408889634
    own = gl.max(_scores(query, new_key), 2) * scale
    own = gl.where((newest >= first) & (newest < first + share), own, float("-inf"))
    peak, total, found = _seen(query, key, value, first, last, scale, D)
    for start in range(first + STEP, last, STEP):
        key = _kept(keys, base, at + (start - first), last, D, W, n)
        value = _turned(room, _kept(values, base, at + (start - first), last, D, W, n))
        higher, more, other = _seen(query, key, value, start, last, scale, D)
        top = gl.maximum(peak, higher)
        shrink, fit = gl.exp2(peak - top), gl.exp2(higher - top)
        total, found = total * shrink + more * fit, found * shrink[:, :, None] + other * fit[:, :, None]
        peak = top
    peaks_of, totals_of, owns_of, found_of = (gl.allocate_shared_memory(gl.float32, [W, 8], _flat(2)),
                                              gl.allocate_shared_memory(gl.float32, [W, 8], _flat(2)),
                                              gl.allocate_shared_memory(gl.float32, [W, 8], _flat(2)),
                                              gl.allocate_shared_memory(gl.float32, [W, 8, D], _flat(3)))  # fmt: skip
    peaks_of.store(peak)  # all is stored before something is read: one barrier
    totals_of.store(total)
    owns_of.store(own)
    found_of.store(found)
    peak, total, own = _told_by(peaks_of, W, D), _told_by(totals_of, W, D), gl.max(_told_by(owns_of, W, D), 0)
    found = gl.reshape(found_of.slice(0, 1, 1).load(_gathered(W, D, 1)), [W, D])
    found = gl.convert_layout(found, after, assert_trivial=True)
    top = gl.maximum(gl.max(peak, 0), own)
    least = gl.where(top > float("-inf"), top, 0.0)  # a share without slots
    weight, mine = gl.exp2(peak - least), gl.exp2(own - least)
    total = gl.sum(weight * total, 0) + mine
    found = gl.sum(found * weight[:, None], 0) + mine * new_value
    to = (row * SPLITS + split) * H + head
    if SPLITS == 1:
        gl.store(out + to * D + across, (found / total).to(kind))
    else:
        gl.store(out + to * D + across, found)
        gl.store(peaks + to, top)
        gl.store(sums + to, total)


@gluon.jit
def _left_by(parts, peaks, sums, D: gl.constexpr, H: gl.constexpr, HEADS: gl.constexpr, SPLITS: gl.constexpr,
             ROWS: gl.constexpr):  # fmt: skip
    """What `attend` left of its splits, heads of all rows side by side: peaks and sums (SPLITS, R · HEADS), values
    (SPLITS, R · HEADS, D), zero beyond H."""
    every: gl.constexpr = _power(ROWS) * HEADS
    layout: gl.constexpr = _shares(SPLITS, every, D, gl.num_warps())
    of: gl.constexpr = gl.SliceLayout(2, layout)
    at, head = _of_heads(gl.arange(0, every, gl.SliceLayout(0, of)), H, HEADS, SPLITS, ROWS)
    at = at[None, :] + gl.arange(0, SPLITS, gl.SliceLayout(1, of))[:, None] * H
    there = (head < H)[None, :] & (at >= 0)
    peak, total = gl.load(peaks + at, mask=there, other=0.0), gl.load(sums + at, mask=there, other=1.0)
    number = gl.arange(0, every, gl.SliceLayout(0, gl.SliceLayout(2, layout)))
    at, head = _of_heads(number, H, HEADS, SPLITS, ROWS)
    at = at[None, :, None] + gl.arange(0, SPLITS, gl.SliceLayout(1, gl.SliceLayout(2, layout)))[:, None, None] * H
    at = at * D + gl.arange(0, D, gl.SliceLayout(0, gl.SliceLayout(1, layout)))[None, None, :]
    found = gl.load(parts + at, mask=(head < H)[None, :, None] & (at >= 0), other=0.0)
    return _now(peak), _now(total), _now(found)


@gluon.jit
def _of_heads(number, H: gl.constexpr, HEADS: gl.constexpr, SPLITS: gl.constexpr, ROWS: gl.constexpr):
    """Where the first split of each (row, head) lies, and the head."""
    head = number % HEADS
    return gl.minimum(number // HEADS, ROWS - 1) * (SPLITS * H) + head, head


@gluon.jit
def _joined(peak, total, found):
    """The splits put together, (R · HEADS, D)."""
    weight = gl.exp2(peak - gl.max(peak, 0)[None, :])
    weight = weight / gl.sum(weight * total, 0)[None, :]
    return gl.sum(found * weight[:, :, None], 0)


@gluon.jit(do_not_specialize=["B"])
def add(a, peaks, sums, w, both, x, norm, y, squares, B, k: gl.constexpr, C: gl.constexpr, D: gl.constexpr,
        H: gl.constexpr, HEADS: gl.constexpr, PARTS: gl.constexpr, PIECES: gl.constexpr, W: gl.constexpr,
        NEXT: gl.constexpr, SPLITS: gl.constexpr, ORDERED: gl.constexpr, BITS: gl.constexpr, ROWS: gl.constexpr,
        EARLY: gl.constexpr):  # fmt: skip
    """x (ROWS, C) += a (ROWS, k) · w (C, k)ᵀ, eight outputs a program, of attention's splits or, ORDERED, of what
    `widen` left; and what the next norm needs: y, x times its weight, for who reads it by NEXT, and Σ x²."""
    _start(EARLY)
    kind: gl.constexpr = y.dtype.element_ty
    R: gl.constexpr = _power(ROWS)
    of_outputs: gl.constexpr = gl.SliceLayout(1, _spread(8, R, W))
    part = gl.program_id(0)
    at = part * 8 + gl.arange(0, 8, of_outputs)
    tiles, scales = _held(w, both, part * 8, part, k, PIECES, W, BITS, kind)
    gain, place = _now(gl.load(norm + at).to(gl.float32))[:, None], _place(part, NEXT, of_outputs)[:, None]
    row = _row(ROWS, gl.SliceLayout(0, _spread(8, R, W)))
    tiles = _wait_with(tiles, B, BITS, EARLY)
    before = _now(gl.load(x + row[None, :] * C + at[:, None]))
    if SPLITS == 1:
        given = _inputs(a, k, PIECES, W, ORDERED, ROWS)
        _loaded(B, EARLY)
    else:
        peak, total, found = _left_by(a, peaks, sums, D, H, HEADS, SPLITS, ROWS)
        _loaded(B, EARLY)
        found = gl.reshape(_joined(peak, total, found).to(kind), [R, HEADS * D])
        given = _inputs_of(gl.allocate_shared_memory(kind, [R, HEADS * D], _flat(2), found), PIECES, W, ROWS)
    found = before + _eight(_multiplied(tiles, scales, given, PIECES, W, BITS), W, R)
    gl.store(x + row[None, :] * C + at[:, None], found)
    gl.store(y + row[None, :] * (C + ROOM) + place, (found * gain).to(kind))
    gl.store(squares + row * PARTS + part, gl.sum(found * found, 0))


@gluon.jit(do_not_specialize=["B"])
def widen(y, squares, gate, gg, up, gu, h, B, eps, C: gl.constexpr, F: gl.constexpr, PARTS: gl.constexpr,
          PIECES: gl.constexpr, W: gl.constexpr, NEXT: gl.constexpr, BITS: gl.constexpr, ROWS: gl.constexpr,
          EARLY: gl.constexpr):  # fmt: skip
    """y (ROWS, C) → h (ROWS, F) = silu(x · gateᵀ) · (x · upᵀ), eight a program, for who reads it by NEXT."""
    _start(EARLY)
    kind: gl.constexpr = y.dtype.element_ty
    R: gl.constexpr = _power(ROWS)
    part = gl.program_id(0)
    gates, gate_scales = _held(gate, gg, part * 8, part, C, PIECES, W, BITS, kind)
    ups, up_scales = _held(up, gu, part * 8, part, C, PIECES, W, BITS, kind)
    at = _place(part, NEXT, gl.SliceLayout(1, _spread(8, R, W)))[:, None]
    at += _row(ROWS, gl.SliceLayout(0, _spread(8, R, W)))[None, :] * (F + ROOM)
    gates, ups = _halves(_wait_with(gates + ups, B, BITS, EARLY))
    given, parts = _inputs(y, C, PIECES, W, True, ROWS), _squares(squares, PARTS, 8, W, ROWS)
    _loaded(B, EARLY)
    factor = _factor(parts, eps, C, 8, W)
    a, b = _eight_of_both(_multiplied(gates, gate_scales, given, PIECES, W, BITS),
                          _multiplied(ups, up_scales, given, PIECES, W, BITS), W, R)  # fmt: skip
    a, b = a * factor, b * factor
    gl.store(h + at, (a / (1 + gl.exp(-a)) * b).to(kind))


@gluon.jit
def _waiting(w, both, row, block, n, k: gl.constexpr, PIECES: gl.constexpr, W: gl.constexpr,
             BITS: gl.constexpr):  # fmt: skip
    """Eight outputs as they are stored: there is no room for all of a head unpacked."""
    tiles, groups = (), ()
    for piece in gl.static_range(len(PIECES)):
        if BITS == 0:
            tiles = tiles + (_dense(w, row, n - 1, PIECES[piece][0], k, W, PIECES[piece][1]),)
            groups = groups + (1.0,)
        else:
            words, beside = _stored(w, both, block, PIECES, piece, W, BITS)
            tiles, groups = tiles + (words,), groups + (beside,)
    return tiles, groups


@gluon.jit
def _made(tiles, groups, BITS: gl.constexpr, KIND: gl.constexpr):
    """Tiles and scales of it."""
    if BITS == 0:
        return tiles, groups
    else:
        found, scales = (), ()
        for piece in gl.static_range(len(tiles)):
            found = found + (_unpacked(tiles[piece], groups[piece], BITS, KIND),)
            scales = scales + (-_scale(groups[piece]),)
        return found, scales


@gluon.jit(do_not_specialize=["B"])
def predict(y, squares, w, both, rules, logits, best, places, masses, B, V, n, eps, C: gl.constexpr,
            PARTS: gl.constexpr, PIECES: gl.constexpr, W: gl.constexpr, TILES: gl.constexpr, BITS: gl.constexpr,
            ROWS: gl.constexpr, EARLY: gl.constexpr):  # fmt: skip
    """y (ROWS, C) → logits (ROWS, V) float32, and each block of 8 · TILES in short, as `kernels.predict`."""
    _start(EARLY)
    N: gl.constexpr = 8 * TILES
    R: gl.constexpr = _power(ROWS)
    of: gl.constexpr = _spread(N, R, W)
    kind: gl.constexpr = y.dtype.element_ty
    block = gl.program_id(0)
    tiles, groups = (), ()
    for tile in gl.static_range(TILES):
        found, beside = _waiting(w, both, block * N + tile * 8, block * TILES + tile, n, C, PIECES, W, BITS)
        tiles, groups = tiles + (found,), groups + (beside,)
    row = _row(ROWS, gl.SliceLayout(0, of))
    outputs, heat = (block * N + gl.arange(0, N, gl.SliceLayout(1, of)))[:, None], gl.load(rules + row * 7)
    to = row * gl.num_programs(0) + block
    _wait(B, EARLY)
    given, parts = _inputs(y, C, PIECES, W, True, ROWS), _squares(squares, PARTS, N, W, ROWS)
    _loaded(B, EARLY)
    factor = _factor(parts, eps, C, N, W)
    found = ()
    for tile in gl.static_range(TILES):
        made, scales = _made(tiles[tile], groups[tile], BITS, kind)
        found = found + (_multiplied(made, scales, given, PIECES, W, BITS),)
    scores = gl.reshape(_added(found, False, W, R), [N, R])
    scores = gl.convert_layout(scores, of, assert_trivial=True) * factor
    gl.store(logits + row[None, :] * V + outputs, scores, mask=outputs < V)
    scores = gl.where(outputs < V, scores, float("-inf"))
    top = gl.max(scores, 0)
    gl.store(best + to, top)
    gl.store(places + to, gl.min(gl.where(scores == top[None, :], outputs, 2147483647), 0))
    cold = gl.where(heat > 0, 1 / gl.where(heat > 0, heat, 1.0), 1.0)
    gl.store(masses + to, gl.sum(gl.exp((scores - top[None, :]) * cold[None, :]), 0))  # where NaN shows, too
