"""Draws a directed graph as a house: each box below all that need it.

A small version of Sugiyama's method: floors by the longest path, few crossings
by sorting each floor by the mean of its neighbours, short lines by least squares.
"""

from collections import Counter
from html import escape
from typing import NamedTuple

WIDTH, GAP, LINE, PAD, STOREY = 168, 22, 13, 9, 52
INK, PAPER, WALL, RED = "#1f2933", "#ffffff", "#0072B2", "#D55E00"


def reachable(arrows, start):
    """Returns all that is reached from a node by one arrow or more."""
    seen, waiting = set(), list(arrows[start])
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += arrows[node]
    return seen


def circles(arrows):
    """Returns groups of nodes that reach each other, sorted."""
    reach = {node: reachable(arrows, node) for node in arrows}
    found = {
        tuple(sorted(n for n in reach[node] if node in reach[n]))
        for node in arrows
        if node in reach[node]
    }
    return sorted(found)


def without_implied(arrows):
    """Leaves out each arrow that follows from two or more others."""
    return {
        node: {
            target
            for target in targets
            if not any(
                target in reachable(arrows, other)
                for other in targets - {target}
            )
        }
        for node, targets in arrows.items()
    }


def floors_of(arrows, shown):
    """Assigns each room a floor: below everything that imports it.

    Where there is a choice, a room is on the floor that makes the arrows that
    are shown short.
    """
    floor = dict.fromkeys(arrows, 0)
    for _ in arrows:
        for node in sorted(arrows):
            for target in arrows[node]:
                floor[target] = max(floor[target], floor[node] + 1)
    above = {n: {m for m in arrows if n in shown[m]} for n in arrows}
    for _ in arrows:
        for node in sorted(arrows):
            if shown[node] and len(shown[node]) > len(above[node]):
                floor[node] = min(floor[target] for target in shown[node]) - 1
    return floor


def downward(arrows):
    """Splits arrows in those that have an order and those against it.

    Rooms are taken from the top by the fewest arrows into them from rooms that
    are left; an arrow to a room above is one against the order.
    """
    left, order = set(arrows), []
    while left:
        into = Counter(t for node in left for t in arrows[node] & left)
        order.append(min(sorted(left), key=lambda node: into[node]))
        left.remove(order[-1])
    at = {node: i for i, node in enumerate(order)}
    down = {n: {t for t in ts if at[t] > at[n]} for n, ts in arrows.items()}
    up = {(n, t) for n, targets in arrows.items() for t in targets - down[n]}
    return down, sorted(up)


def chains_of(arrows, floor):
    """Gives each arrow a place on every floor that it passes.

    Returns {(room, other room): list of (place, floor)}; the places between the
    ends are named after the arrow.
    """
    return {
        (node, target): [
            (node, floor[node]),
            *(
                (f"{node}>{target}", level)
                for level in range(floor[node] + 1, floor[target])
            ),
            (target, floor[target]),
        ]
        for node in sorted(arrows)
        for target in sorted(arrows[node])
    }


def neighbours_of(chains):
    """Returns {place: places above}, and {place: places below}."""
    above, below = {}, {}
    for chain in chains.values():
        for upper, lower in zip(chain, chain[1:], strict=False):
            below.setdefault(upper, []).append(lower)
            above.setdefault(lower, []).append(upper)
    return above, below


def order_floors(rooms, floor, chains, rounds=24):
    """Orders the places of each floor so that few arrows cross."""
    places = {place for chain in chains.values() for place in chain}
    places |= {(room, floor[room]) for room in rooms}
    floors = [
        sorted(place for place in places if place[1] == level)
        for level in range(max(floor.values()) + 1)
    ]
    sides = neighbours_of(chains)
    for turn in range(rounds):
        at = {
            place: (i + 0.5) / len(row)
            for row in floors
            for i, place in enumerate(row)
        }
        near = sides[turn % 2]
        middle = {
            place: _mean([at[n] for n in near.get(place, [place])])
            for place in at
        }
        floors = [sorted(row, key=middle.get) for row in floors]
    return floors


def _mean(numbers):
    return sum(numbers) / len(numbers)


def spread(wanted, widths):
    """Moves centres apart, as little as possible, until nothing overlaps.

    The least squares under an order: neighbours that would overlap are pooled
    and take their mean (isotonic regression).
    """
    offsets, end = [], 0
    for width in widths:
        offsets.append(end + width / 2)
        end += width + GAP
    pools = []
    for centre, offset in zip(wanted, offsets, strict=True):
        pools.append([centre - offset])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    shifts = [_mean(pool) for pool in pools for _ in pool]
    return [shift + o for shift, o in zip(shifts, offsets, strict=True)]


def centres_of(floors, chains, width_of, rounds=60):
    """Returns the x of each place: near the places its arrows lead to."""
    above, below = neighbours_of(chains)
    x = {}
    for row in floors:
        centres = spread([0] * len(row), [width_of(place) for place in row])
        x.update(zip(row, centres, strict=True))
    for turn in range(rounds):
        for row in floors if turn % 2 == 0 else reversed(floors):
            wanted = [
                _mean([x[n] for n in (*above.get(p, []), *below.get(p, []))])
                if p in above or p in below
                else _mean([x[q] for q in row])
                for p in row
            ]
            centres = spread(wanted, [width_of(place) for place in row])
            x.update(zip(row, centres, strict=True))
    return x


class Box(NamedTuple):
    """Where a room is drawn: its middle, and where its floor ends."""

    x: float
    y: float
    width: float
    height: float
    floor: float = 0


def wrap(words, characters=29):
    """Breaks words into lines."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) + 2 > characters:
            lines.append("")
        lines[-1] += (", " if lines[-1] else "") + word
    return [line for line in lines if line]


def place_boxes(floors, chains, contents):
    """Returns {place: box}, and the size of the drawing."""

    def width_of(place):
        return WIDTH if place[0] in contents else 0

    x = centres_of(floors, chains, width_of)
    left = min(x[place] - width_of(place) / 2 for place in x) - GAP
    right = max(x[place] + width_of(place) / 2 for place in x) + GAP
    boxes, y = {}, GAP
    for row in floors:
        heights = {
            place: 2 * PAD + LINE * (1 + len(contents.get(place[0], [])))
            for place in row
        }
        tallest = max(heights.values())
        for place in row:
            room = Box(x[place] - left, y, width_of(place), heights[place])
            boxes[place] = room._replace(floor=y + tallest)
        y += tallest + STOREY
    return boxes, (right - left, y - STOREY + GAP)


def svg_arrow(points, colour=INK):
    """Draws a smooth line through points, with a head at its end."""
    (x, y), path = points[0], f"M{points[0][0]:.0f} {points[0][1]:.0f}"
    for to_x, to_y in points[1:]:
        bend = (to_y - y) / 2
        path += f" C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f}"
        path += f" {to_x:.0f} {to_y:.0f}"
        x, y = to_x, to_y
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-opacity="0.65" '
        f'stroke-width="1.3" marker-end="url(#head)"/>'
    )


def svg_box(name, lines, box):
    """Draws a room with its name, and its modules below."""
    x, y = box.x, box.y + PAD + 9
    text = [
        f'<rect x="{x - box.width / 2:.0f}" y="{box.y:.0f}" rx="6" '
        f'width="{box.width}" height="{box.height}" fill="#eef5fa" '
        f'stroke="{WALL}"/>',
        f'<text x="{x:.0f}" y="{y:.0f}" font-weight="bold" font-size="12">'
        f"{escape(name)}</text>",
    ]
    for i, line in enumerate(lines, start=1):
        text.append(
            f'<text x="{x:.0f}" y="{y + LINE * i:.0f}" font-size="10" '
            f'fill="#52606d">{escape(line)}</text>'
        )
    return text


def ports_of(chains, boxes):
    """Spreads the ends of arrows along the edges of their boxes.

    Returns {(arrow, whether it leaves): x}, in the order of what lies next.
    """
    ends = {}
    for arrow, chain in chains.items():
        for leaves, place, beyond in (
            (True, chain[0], chain[1]),
            (False, chain[-1], chain[-2]),
        ):
            towards = boxes[beyond].x, chain[-1 if leaves else 0]
            ends.setdefault((place, leaves), []).append((towards, arrow))
    ports = {}
    for (place, leaves), arrows in ends.items():
        for i, (_, arrow) in enumerate(sorted(arrows), start=1):
            share = i / (len(arrows) + 1) - 0.5
            ports[arrow, leaves] = boxes[place].x + 0.8 * share * WIDTH
    return ports


def svg_arrows(chains, boxes, up):
    """Draws the arrows down, and those against the order in red."""
    ports, arrows = ports_of(chains, boxes), []
    for arrow, chain in chains.items():
        start, end = boxes[chain[0]], boxes[chain[-1]]
        points = [
            (ports[arrow, True], start.y + start.height),
            (ports[arrow, True], start.floor),
        ]
        for place in chain[1:-1]:
            box = boxes[place]
            points += [(box.x, box.y), (box.x, box.floor)]
        arrows.append(svg_arrow([*points, (ports[arrow, False], end.y - 1)]))
    for start, end in up:
        of, to = boxes[start], boxes[end]
        ends = [(of.x + WIDTH / 3, of.y), (to.x + WIDTH / 3, to.y + to.height)]
        arrows.append(svg_arrow(ends, RED))
    return arrows


def svg(rooms, contents):
    """Draws a graph.

    An arrow that follows from others is left out; one that goes against the
    order, as in a circle, is red.

    Arguments
    ---------
    rooms : dict of str to set of str
        What each box needs.
    contents : dict of str to list of str
        What stands in each box.

    Returns
    -------
    str
        A drawing as svg.
    """
    down, against = downward(rooms)
    shown = without_implied(down)
    floor = floors_of(down, shown)
    contents = {room: wrap(names) for room, names in contents.items()}
    chains = chains_of(shown, floor)
    floors = order_floors(rooms, floor, chains)
    boxes, (width, height) = place_boxes(floors, chains, contents)
    up = [((n, floor[n]), (t, floor[t])) for n, t in against]
    body = svg_arrows(chains, boxes, up)
    for room in sorted(rooms):
        body += svg_box(room, contents[room], boxes[room, floor[room]])
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} '
            f'{height:.0f}" font-family="DejaVu Sans, Arial, sans-serif" '
            f'text-anchor="middle" fill="{INK}">',
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" '
            'markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>',
            f'<rect width="100%" height="100%" fill="{PAPER}"/>',
            *body,
            "</svg>",
            "",
        ]
    )
