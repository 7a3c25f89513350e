"""A short label of a feature, by fixed rules from what it does on a corpus.

A label repeats evidence and adds none: each rule asks what most of a feature's activation has in
common, and names that. Activations count by their squares, so that strong ones decide. The first
rule that holds gives the label (shares are at least 60 %; "more often" is against the corpus):

=============  =====================================================  ==========================
rule           holds if most activation is                            label
=============  =====================================================  ==========================
``say``        followed by one token, three times more often, which   say Austin
               is among the first three that the decoder promotes
``say class``  followed by tokens of a class, twice more often, and   say state capitals
               three or more of the ten tokens that the decoder
               promotes most are of it, three times more than by
               chance
``token``      at one token                                           "Dallas"
…, refined     … at fewer than half of its occurrences, and after     "is" after Texas cities
               words of one class, or one token, half as often        "is" after "capital"
               again
``class``      at tokens of a class, twice more often, and at one in  Texas cities
               ten of its words or more; below half: "some …"         some cities
``about``      at or after words of a class, three times more often   about Texas cities
``tokens``     at two or three tokens                                 "hot" or "cold"
``before``     after one token, twice more often                      after "opposite"
``partly``     30 % at or after words of a class, five times more     partly about Texas
               often, and one of the first three tokens that the
               decoder promotes is of it
``mixed``      none of these                                          mostly "of"; "a", "b", …
=============  =====================================================  ==========================

Where several classes or tokens fit, the one with the largest share · log(how much more often)
counts; of ``class``, the one with the best F1 of the share and of how much of the class is covered.
Features that are active at fewer than ten positions get no class: so few have much in common by
chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

__all__ = ["Evidence", "Label", "Share", "label_of"]

_MOST: Final = 0.6  # of the activation, to be named after it
_OFTEN: Final = 0.5  # of a token's occurrences, or of a class
_ENOUGH: Final = 10  # positions, to speak of a class


class Share(NamedTuple):
    """Part of a feature's activation that has something in common.

    Attributes
    ----------
    name
        What: a token, or a class of words.
    share
        Of the activation.
    active
        Share of the positions with this name at which the feature is active.
    base
        Share of all positions of the corpus that have the name.
    covered, members
        Of a class: at how many of its words the feature is active (at one in ten of their
        occurrences or more), and how many of its words occur.
    """

    name: str
    share: float
    active: float
    base: float
    covered: int = 0
    members: int = 0

    @property
    def lift(self) -> float:
        """How many times more often than elsewhere."""
        return self.share / self.base


class Label(NamedTuple):
    """A label, the rule that gave it, and the evidence in words."""

    text: str
    rule: str
    reason: str


@dataclass(frozen=True)
class Evidence:
    """What a feature does on a corpus; lists of shares fall.

    Attributes
    ----------
    at, after, before
        Tokens at active positions, after them, and (each once) among those before them.
    classes_at, classes_after, classes_before
        Classes of the first two, and of all words at or before active positions.
    promoted
        Tokens that the decoder promotes, most first.
    classes
        Classes of each word.
    positions
        At how many positions the feature is active.
    """

    at: Sequence[Share]
    after: Sequence[Share] = ()
    before: Sequence[Share] = ()
    classes_at: Sequence[Share] = ()
    classes_after: Sequence[Share] = ()
    classes_before: Sequence[Share] = ()
    promoted: Sequence[str] = ()
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    positions: int = 1000

    @property
    def is_rare(self) -> bool:
        """Whether it is active too rarely to speak of classes."""
        return self.positions < _ENOUGH


def label_of(evidence: Evidence) -> Label:
    """Label a feature by the first rule that holds; see the module's text.

    Examples
    --------
    >>> label_of(Evidence(at=[Share("Dallas", 0.97, 0.9, 0.01)]))
    Label(text='"Dallas"', rule='token', reason='97 % of the activation is at "Dallas"')
    """
    label = _first(evidence)
    if evidence.is_rare:
        label = label._replace(reason=f"{label.reason}; active at {evidence.positions} positions")
    return label


def _first(evidence: Evidence) -> Label:
    for rule in (_say, _say_class, _token, _class, _about, _tokens, _before, _partly):
        label = rule(evidence)
        if label is not None:
            return label
    return _mixed(evidence)


def _say(evidence: Evidence) -> Label | None:
    for share in evidence.after[:1]:
        if share.share >= _MOST and share.lift >= 3 and share.name in evidence.promoted[:3]:
            rank = evidence.promoted.index(share.name) + 1
            reason = (
                f"{_percent(share.share)} of the activation is followed by {_quoted(share.name)}, "
                f"promoted token {rank}"
            )
            return Label(f"say {_shown(share.name)}", "say", reason)
    return None


def _say_class(evidence: Evidence) -> Label | None:
    if evidence.is_rare:
        return None
    fitting = []
    promoted = evidence.promoted[:10]
    words = max(len(evidence.classes), 1)
    for share in evidence.classes_after:
        members = sum(share.name in evidence.classes.get(word, ()) for word in promoted)
        chance = share.members / words
        if (
            share.share >= _MOST
            and share.lift >= 2
            and members >= max(3, 3 * chance * len(promoted))
        ):
            fitting.append((_fit(share), share.name, share, members))
    if not fitting:
        return None
    _, name, share, members = max(fitting)
    reason = (
        f"{_percent(share.share)} of the activation is followed by {name}, and {members} of the "
        f"{len(promoted)} most promoted tokens are"
    )
    return Label(f"say {name}", "say class", reason)


def _token(evidence: Evidence) -> Label | None:
    if not evidence.at or evidence.at[0].share < _MOST:
        return None
    token = evidence.at[0]
    reason = f"{_percent(token.share)} of the activation is at {_quoted(token.name)}"
    if token.active < _OFTEN and not evidence.is_rare:
        words = [(share, share.name) for share in _classes_before(evidence)]
        words += [(s, _quoted(s.name)) for s in evidence.before if s.name != token.name]
        common = _common(words, 1.5)
        if common is not None:
            share, name = common
            reason += f", {_percent(share.share)} after {name}"
            return Label(f"{_quoted(token.name)} after {name}", "token", reason)
    return Label(_quoted(token.name), "token", reason)


def _class(evidence: Evidence) -> Label | None:
    if evidence.is_rare:
        return None
    fitting = []
    for share in evidence.classes_at:
        if share.share >= _MOST and share.lift >= 2 and share.covered >= max(2, share.members / 10):
            recall = share.covered / share.members
            fitting.append((2 * share.share * recall / (share.share + recall), share))
    if not fitting:
        return None
    _, share = max(fitting, key=lambda one: (one[0], one[1].lift, one[1].name))
    reason = (
        f"{_percent(share.share)} of the activation is at {share.name}, of which it covers "
        f"{share.covered} of {share.members}"
    )
    text = share.name if share.covered >= _OFTEN * share.members else f"some {share.name}"
    return Label(text, "class", reason)


def _about(evidence: Evidence) -> Label | None:
    common = _common([(share, share.name) for share in _classes_before(evidence)], 3.0)
    if common is None:
        return None
    share, name = common
    reason = f"{_percent(share.share)} of the activation is at or after {name}"
    return Label(f"about {name}", "about", reason)


def _tokens(evidence: Evidence) -> Label | None:
    for many in (2, 3):
        named = evidence.at[:many]
        total = sum(share.share for share in named)
        if len(named) == many and total >= _MOST and named[-1].share >= 0.05:
            text = " or ".join(_quoted(share.name) for share in named)
            return Label(text, "tokens", f"{_percent(total)} of the activation is at {text}")
    return None


def _before(evidence: Evidence) -> Label | None:
    common = _common([(share, _quoted(share.name)) for share in evidence.before], 2.0)
    if common is None:
        return None
    share, name = common
    return Label(
        f"after {name}", "before", f"{_percent(share.share)} of the activation is after {name}"
    )


def _partly(evidence: Evidence) -> Label | None:
    promoted = evidence.promoted[:3]
    led_to = {name for word in promoted for name in evidence.classes.get(word, ())}
    words = [(share, share.name) for share in _classes_before(evidence) if share.name in led_to]
    common = _common(words, 5.0, 0.3)
    if common is None:
        return None
    share, name = common
    members = [_quoted(word) for word in promoted if name in evidence.classes.get(word, ())]
    reason = (
        f"{_percent(share.share)} of the activation is at or after {name}, and the decoder "
        f"promotes {' and '.join(members)}"
    )
    return Label(f"partly about {name}", "partly", reason)


def _mixed(evidence: Evidence) -> Label:
    named = evidence.at[:3]
    total = sum(share.share for share in named)
    listed = ", ".join(_quoted(share.name) for share in named)
    reason = f"{_percent(total)} of the activation is at {listed}"
    if named and named[0].share >= 0.4:
        return Label(f"mostly {_quoted(named[0].name)}", "mixed", reason)
    return Label(f"mixed: {listed}, …", "mixed", reason)


def _common(
    shares: Sequence[tuple[Share, str]], lift: float, least: float = _MOST
) -> tuple[Share, str] | None:
    """Find what most of the activation has in common."""
    found = [one for one in shares if one[0].share >= least and one[0].lift >= lift]
    return max(found, key=lambda one: (_fit(one[0]), one[1]), default=None)


def _fit(share: Share) -> float:
    return share.share * math.log(share.lift)


def _classes_before(evidence: Evidence) -> Sequence[Share]:
    return () if evidence.is_rare else evidence.classes_before


def _quoted(token: str) -> str:
    return f'"{_shown(token)}"'


def _shown(token: str) -> str:
    """Token on one line."""
    return token.replace("\n", "↵").replace("\t", "⇥") or "∅"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
