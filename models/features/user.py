"""Features of a user, the same for all candidates of a query. Users without history have zeros."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.features.spec import Group
from models.pipeline.batch import Model
from models.state.rows import UserRecord
from models.units import DAY_MS

__all__ = ["USER", "OfUser"]


@dataclass(frozen=True)
class OfUser:
    """A user as of stream time."""

    user: UserRecord
    liked: NDArray[np.bool_] | None
    "Whether the release counts each event as liked, newest first."
    now_ms: int
    model: Model


USER = Group[OfUser]()


@USER.feature("user_events")
def user_events(of: OfUser) -> float:
    """Number of events so far, as a logarithm."""
    return float(np.log1p(sum(of.user.counts.values())))


@USER.feature("user_history")
def user_history(of: OfUser) -> float:
    """Number of events that are kept, as a logarithm."""
    return float(np.log1p(len(of.user.history)))


@USER.feature("user_value")
def user_value(of: OfUser) -> float:
    """Mean of the standardised values of kept events; 0 where none has a value."""
    values = of.user.history["value"]
    valued = ~np.isnan(values)
    return float(of.model.vocabulary.standard(values[valued]).mean()) if valued.any() else 0.0


@USER.feature("user_liked_share")
def user_liked_share(of: OfUser) -> float:
    """Share of kept events that are liked."""
    return float(of.liked.mean()) if of.liked is not None and len(of.liked) else 0.0


@USER.feature("user_idle")
def user_idle(of: OfUser) -> float:
    """Days since the newest event, as a logarithm."""
    return float(np.log1p(max(of.now_ms - of.user.last_ms, 0) / DAY_MS))


@USER.feature("user_session")
def user_session(of: OfUser) -> float:
    """Number of events in the newest session, as a logarithm."""
    return float(np.log1p(of.user.session[2]))


@USER.feature("user_span")
def user_span(of: OfUser) -> float:
    """Days between the oldest and the newest event, as a logarithm."""
    return float(np.log1p(max(of.user.last_ms - of.user.first_ms, 0) / DAY_MS))
