"""The 90 patterns of a 4 x 4 tile with two of four in every row and column, arranged for a search.

The two upper rows pick pairs of columns (a, b), the two lower rows pairs (c, d) that make up what the upper
leave: three kinds, in 19 classes with the same column counts,

* a = b, and c = d is the other pair                            6 classes of  1 x 1
* b is the other pair of a, and d the other pair of c           1 class  of  6 x 6
* a and b share one column, c and d share the column of neither 12 classes of  2 x 2

and the best of a class is the best upper half plus the best lower half. So 72 sums of pairs and 19 sums of
halves are compared instead of 90 sums of eight.
"""

PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))  # columns of a pair; pair 5 - i has the other two
LIMIT = 2.0**124  # what a weight counts at most; eight of them stay finite

Half = tuple[tuple[int, int], ...]


def _classes() -> tuple[tuple[Half, Half], ...]:
    halves: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for a, first in enumerate(PAIRS):
        for b, second in enumerate(PAIRS):
            counts = tuple((c in first) + (c in second) for c in range(4))
            halves.setdefault(counts, []).append((a, b))
    return tuple((tuple(upper), tuple(halves[tuple(2 - c for c in counts)])) for counts, upper in halves.items())


CLASSES = _classes()  # of each its upper and its lower halves, as pairs of indices into PAIRS
