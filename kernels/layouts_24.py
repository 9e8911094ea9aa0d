"""Where a packed 2:4 matrix keeps its values and its metadata: one form for every layout.

A group is four consecutive weights of a row, a quad, of which two are kept. A packed matrix is one flat tensor of
the values' dtype: first the kept values in order, row after row, then the metadata, a nibble (4 bits) a quad. For
16-bit values that is 9/16 of the dense size. Rows and columns are padded with zeros to multiples of `MULTIPLE`, so
that the transpose pads alike.

    a row of eight weights    0 5 0 7   2 0 0 3
    values                    5 7       2 3
    kept places               1, 3      0, 3
    nibbles, as indices       0xD       0xC      first | second << 2
    nibbles, as a bitmask     0b1010    0b1001   bit j for place j

Two places are stored of every quad. Where fewer are kept, zeros are stored at places that `PLACES` adds; they are
those that torch's own conversion adds.

Layouts differ in the order of the nibbles alone. Nibbles lie in little-endian words: `word_of` says in which word a
quad's nibble is, `shift_of` how far up.

    bitmask        rows of bits, as compressed-tensors' sparse24 stores them
    cutlass_sm80   CUTLASS's column-major interleaved order, torch's `_to_sparse_semi_structured`
    cslt_sm80      cuSPARSELt on Ampere: the same order within 32 x 32, those tiles in 128 x 64
    cslt_sm90      cuSPARSELt on Hopper: rows r and r + 8 share bytes; eight bytes hold 32 columns of both
    library        whatever cuSPARSELt writes where that is neither of these: its own functions read and write it

cuSPARSELt does not document its layouts; `trisparse.sparse_ops.layout_24` compares them with what it writes on this
machine. Sources: CUTLASS host_reorder.h, torch SparseSemiStructuredPack.h, torchao 0.14 sparse24_metadata.h.

These functions are plain arithmetic, so that integers, tensors and kernels share them.
"""

MULTIPLE = {"bitmask": 64, "cutlass_sm80": 64, "cslt_sm80": 128, "cslt_sm90": 64, "library": 128}
WORD_BITS = {"bitmask": 16, "cutlass_sm80": 16, "cslt_sm80": 16, "cslt_sm90": 64}
QUADS = {"bitmask": 4, "cutlass_sm80": 4, "cslt_sm80": 4, "cslt_sm90": 8}  # consecutive quads of a row in a word


def _places(bits: int) -> tuple[int, int]:
    """The two places stored of a quad, from bit j for a kept place j."""
    first = 0 if bits & 1 else 1 if bits & 2 else 2
    return first, 3 if bits & 8 or first == 2 else 1 if bits & 3 == 3 else 2


PLACES = tuple(_places(bits) for bits in range(16))


def nibble_table(layout: str) -> tuple[int, ...]:
    """The nibble of each set of kept places."""
    if layout == "bitmask":
        return tuple(1 << first | 1 << second for first, second in PLACES)
    return tuple(first | second << 2 for first, second in PLACES)


def word_of(row, word, rows, cols, layout):
    """Offset of the word that holds the nibbles of `row` in its `word`-th run of QUADS quads.

    Args:
        row: row of the matrix.
        word: quad // QUADS[layout].
        rows: of the padded matrix.
        cols: of the padded matrix.
        layout: a key of MULTIPLE.
    """
    if layout == "bitmask":
        offset = row * (cols // 16) + word
    elif layout == "cslt_sm90":
        offset = (row // 64 * (cols // 32) + word) * 32 + row % 64 // 16 * 8 + row % 8
    else:  # in 32 rows x 2 words: eight rows apart become neighbours, then words cross between neighbours
        line = row % 8 * 4 + row % 32 // 8
        swap = (1 - line % 2) * (word % 2) - line % 2 * (1 - word % 2)
        tile = word // 2 * (rows // 32) + row // 32
        if layout == "cslt_sm80":
            tile = (word // 4 * (rows // 128) + row // 128) * 8 + word % 4 // 2 * 4 + row % 128 // 32
        offset = tile * 64 + (line + swap) * 2 + (word - swap) % 2
    return offset


def shift_of(row, quad, layout):
    """How many bits up in its word a quad's nibble is."""
    if layout == "cslt_sm90":
        nibble = 4 * (quad % 4) + 2 * (quad % 8 // 4) + row % 16 // 8
    else:
        nibble = quad % 4
    return 4 * nibble


def padded(rows: int, cols: int, layout: str) -> tuple[int, int]:
    """Shape of the padded matrix."""
    multiple = MULTIPLE[layout]
    return -(-rows // multiple) * multiple, -(-cols // multiple) * multiple


def packed_size(rows: int, cols: int, layout: str, itemsize: int) -> tuple[int, int]:
    """How many elements of `itemsize` bytes a packed matrix has: its values, and all."""
    rows, cols = padded(rows, cols, layout)
    return rows * cols // 2, rows * cols // 2 + rows * cols // 8 // itemsize
