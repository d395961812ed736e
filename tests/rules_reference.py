"""Slates by rules in plain Python, one place after the other, as the compiled loops must make them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Slate", "Task", "arrange"]


@dataclass
class Task:
    """One slate to be made. Candidates are numbers, best first; rules are numbers, too."""

    candidates: Sequence[int]
    length: int
    matches: Callable[[int, int], bool]
    "Whether a rule matches a candidate."
    category: Mapping[int, int]
    pins: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    "Candidate and rule by place."
    requires: Sequence[tuple[int, int, int]] = ()
    "Rule, least, first; those with the earliest last place first."
    caps: Sequence[tuple[int, int, bool]] = ()
    "Rule, most, per category."
    fresh: Sequence[tuple[int, int]] = ()
    "Rule and number of places."
    drawn: Sequence[int] = ()
    "Candidates in the order in which new ones are drawn."
    turn: Sequence[int] = ()
    "Places in the order in which new items take them."


Slate = list[tuple[int, int]]
"Candidate and the rule that placed it, -1 for none."


def arrange(task: Task) -> Slate:
    slate = fill(task, reserve=False)
    return slate if all(met(task, slate, *rule) for rule in task.requires) else fill(task, reserve=True)


def met(task: Task, slate: Slate, rule: int, least: int, first: int) -> bool:
    return sum(task.matches(rule, c) for c, _ in slate[:first]) >= least


def fits(task: Task, chosen: Sequence[int], c: int) -> bool:
    """Whether another candidate breaks no cap."""
    for rule, most, per in task.caps:
        if not task.matches(rule, c) or (per and task.category[c] < 0):
            continue
        alike = [o for o in chosen if task.matches(rule, o) and (not per or task.category[o] == task.category[c])]
        if len(alike) >= most:
            return False
    return True


def fill(task: Task, *, reserve: bool) -> Slate:
    slots = {place: c for place, (c, _) in task.pins.items()}
    why = dict(task.pins.values())
    chosen = list(slots.values())
    due: dict[int, int] = {}
    if reserve:
        for rule, least, first in task.requires:
            last = min(first, task.length)
            need = least - sum(task.matches(rule, c) for p, c in slots.items() if p < last)
            need -= sum(task.matches(rule, c) for c in due)
            need = min(need, sum(p not in slots for p in range(last)) - len(due))
            for c in task.candidates:
                if need > 0 and c not in chosen and task.matches(rule, c) and fits(task, chosen, c):
                    chosen.append(c)
                    due[c], why[c] = last, rule
                    need -= 1
    picked = []
    for rule, places in task.fresh:
        need = min(places, task.length - len(chosen))
        for c in task.drawn:
            if need > 0 and c not in chosen and task.matches(rule, c) and fits(task, chosen, c):
                chosen.append(c)
                picked.append(c)
                why[c] = rule
                need -= 1
    for strict in (True, False):
        for c in task.candidates:
            if len(chosen) < task.length and c not in chosen and (not strict or fits(task, chosen, c)):
                chosen.append(c)
    turn = iter(task.turn)
    for c in picked:
        for place in turn:
            if place not in slots and leaves_room(task, slots, due, place):
                slots[place] = c
                break
    for place in range(task.length):
        if place not in slots:
            slots[place] = next_for(task, slots, due, chosen, place)
    return [(slots[p], why.get(slots[p], -1)) for p in range(task.length)]


def leaves_room(task: Task, slots: Mapping[int, int], due: Mapping[int, int], place: int) -> bool:
    """Whether all that is reserved still fits if the place is taken."""
    lasts = Counter(due.values())
    for last in lasts:
        if last > place:
            room = sum(p not in slots for p in range(last)) - 1
            if room < sum(n for other, n in lasts.items() if other <= last):
                return False
    return True


def next_for(task: Task, slots: Mapping[int, int], due: Mapping[int, int], chosen: Sequence[int], place: int) -> int:
    """The best of those left, or the best of those reserved that would not fit any more."""
    left = [c for c in task.candidates if c in chosen and c not in slots.values()]
    for last in sorted(set(due.values())):
        waiting = [c for c in left if c in due and due[c] <= last]
        if waiting and len(waiting) >= sum(p not in slots for p in range(place, last)):
            return waiting[0]
    return left[0]
