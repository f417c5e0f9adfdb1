"""Sorting by a teacher that names the best of a few passages: a heap, or bubbles, which settle only the first ranks.

Both are generators of groups: (head, others …), positions of passages. They receive, for each group, the place of its best
member. `setwise` and `pairwise` turn groups into windows.
"""

from collections.abc import Callable, Generator, Sequence

from teachers.strategies.base import Bounds, Order, Window, checked

Group = tuple[int, ...]
Sort = Generator[list[Group], list[int], list[int]]
Windows = Generator[list[Window], list[Order], list[int]]
Cost = Callable[[int], int]  # members of a group -> its calls

SORTS = ("heap", "bubble")


def sort(method: str, n: int, children: int, keep: int) -> Sort:
    """Sort positions 0..n-1 until the first `keep` are settled; return all, the others in their prior order."""
    return (_heap if method == "heap" else _bubble)(n, children, keep)


def bounds(method: str, n: int, children: int, keep: int, cost: Cost) -> Bounds:
    """Return the least and most calls of :func:`sort`, whatever the answers."""
    if n < 2:
        return Bounds(0, 0)
    return (_heap_bounds if method == "heap" else _bubble_bounds)(n, children, keep, cost)


def asked(sorting: Sort, best: Callable[[list[Group]], Windows]) -> Windows:
    """Run a sort whose groups are decided by `best`, a generator of windows; return its positions."""
    try:
        groups = next(sorting)
        while True:
            places = yield from best(groups)
            groups = sorting.send(places)
    except StopIteration as end:
        found: list[int] = end.value
        return found


def check(children: int, keep: int) -> None:
    """Check the numbers of a strategy that sorts.

    Raises:
        TeacherError: if one is below 1.
    """
    checked("children", children, 1)
    checked("keep", keep, 1)


# ------------------------------------------------------------------------------------------------------------ the heap
def _kids(node: int, size: int, children: int) -> range:
    return range(min(children * node + 1, size), min(children * node + children + 1, size))


def _levels(size: int, children: int) -> list[list[int]]:
    """Return the nodes with children by level, the deepest level first; subtrees of one level do not overlap."""
    levels, first, width = [], 0, 1
    while _kids(first, size, children):
        levels.append(
            [node for node in range(first, min(first + width, size)) if _kids(node, size, children)]
        )
        first, width = first + width, width * children
    return levels[::-1]


def _sift(
    heap: list[int], size: int, nodes: Sequence[int], children: int
) -> Generator[list[Group], list[int], None]:
    """Let the passages of these nodes sink to their places; nodes of one level sink side by side."""
    sinking = [node for node in nodes if _kids(node, size, children)]
    while sinking:
        places = [(node, *_kids(node, size, children)) for node in sinking]
        best = yield [tuple(heap[place] for place in group) for group in places]
        sinking = []
        for group, winner in zip(places, best, strict=True):
            node, place = group[0], group[winner]
            if place != node:
                heap[node], heap[place] = heap[place], heap[node]
                if _kids(place, size, children):
                    sinking.append(place)


def _heap(n: int, children: int, keep: int) -> Sort:
    """Build a heap of `children` children to a node, then take its head `keep` times (arXiv 2310.09497)."""
    heap = list(range(n))
    for level in _levels(n, children):
        yield from _sift(heap, n, level, children)
    ranked = []
    for size in range(n - 1, max(n - keep, 0) - 1, -1):
        ranked.append(heap[0])
        heap[0] = heap[size]
        if len(ranked) < keep:
            yield from _sift(heap, size, [0], children)
    return [*ranked, *sorted(set(range(n)) - set(ranked))]


def _heap_bounds(n: int, children: int, keep: int, cost: Cost) -> Bounds:
    least = most = 0
    for size in range(n, max(n - keep, 0), -1):
        deepest = _deepest(size, children, cost)
        nodes = range(size) if size == n else range(1)  # the first heap is built, later ones mend their head
        inner = [node for node in nodes if _kids(node, size, children)]
        least += sum(cost(1 + len(_kids(node, size, children))) for node in inner)
        most += sum(deepest[node] for node in inner)
    return Bounds(least, most)


def _deepest(size: int, children: int, cost: Cost) -> list[int]:
    """Return, for each node, the calls of the costliest way down from it."""
    found = [0] * size
    for node in range(size - 1, -1, -1):
        kids = _kids(node, size, children)
        if kids:
            found[node] = cost(1 + len(kids)) + max(found[kid] for kid in kids)
    return found


# ------------------------------------------------------------------------------------------------------------- bubbles
def _starts(n: int, children: int, first: int) -> list[tuple[int, int]]:
    """Return (start, end) of the groups of the pass that settles rank `first` (from 0), from the end upwards."""
    places, end = [], n
    while end - first > 1:
        start = max(end - children - 1, first)
        places.append((start, end))
        end = start + 1
    return places


def _bubble(n: int, children: int, keep: int) -> Sort:
    """Carry the best passage to the head, pass by pass; a group that did not change since is not asked again."""
    order, known = list(range(n)), dict[Group, int]()
    for first in range(min(keep, n - 1)):
        for start, end in _starts(n, children, first):
            group = tuple(order[start:end])
            if group not in known:
                (known[group],) = yield [group]
            place = start + known[group]
            order[start], order[place] = order[place], order[start]
    head = order[: min(keep, n)]
    return [*head, *sorted(set(range(n)) - set(head))]


def _bubble_bounds(n: int, children: int, keep: int, cost: Cost) -> Bounds:
    passes = [_starts(n, children, first) for first in range(min(keep, n - 1))]
    places = [place for one in passes for place in one]
    # Fewest calls if nothing moves: then a group is its place.
    least = sum(cost(end - start) for start, end in set(places))
    return Bounds(least, sum(cost(end - start) for start, end in places))
