"""What a device says about its link: what it has spent, whether it may send, and when a transfer will be done.

What this file leaves to others: the arithmetic (`link/budget.py`), the account (`ledger.py`), the rest of the view
(`reporter.py`).
"""

from __future__ import annotations

import math

import msgspec

from edgeferry.agent.gate import WIRE_FACTOR, Gate
from edgeferry.link.budget import plan_transfer
from edgeferry.twin.status import LedgerStatus, LinkStatus, ModelStatus

_RESUME_BYTES = 8 << 10
"""What a further sitting costs: a connection with its handshakes, and a request."""


def make_ledger_status(gate: Gate) -> LedgerStatus:
    """Today's and this month's bytes beside their budgets."""
    spent, policy = gate.get_spent(), gate.policy
    return LedgerStatus(
        day_bytes=spent.day_bytes,
        month_bytes=spent.month_bytes,
        total_bytes=sum(sum(kinds.values()) for kinds in gate.ledger.get_days().values()),
        day_budget_bytes=policy.day_bytes,
        month_budget_bytes=policy.month_bytes,
        cost=round(policy.get_price(spent.month_bytes), 4),
        currency=policy.currency if policy.price_per_mb else "",
    )


def make_link_status(gate: Gate) -> LinkStatus:
    """Whether an update of no special urgency may use the link now."""
    verdict = gate.judge()
    return LinkStatus(
        link_class=gate.get_class(),
        may_send=verdict.may_send,
        reason=verdict.reason,
        opens_at=0.0 if verdict.may_send else verdict.retry_at,
        closes_at=verdict.closes_at if math.isfinite(verdict.closes_at) else 0.0,
        rate_bps=verdict.rate_bps,
    )


def forecast(status: ModelStatus, gate: Gate, bps: float, *, priority: int) -> ModelStatus:
    """The status with the rate and the time at which its downloads will be done, where either can be told."""
    bps = bps or gate.policy.link_bps
    left = status.total_bytes - status.done_bytes
    if status.state not in ("DOWNLOADING", "WAITING") or left <= 0 or not bps:
        return status
    plan = plan_transfer(
        gate.policy,
        gate.get_spent(),
        now=gate.now(),
        wire_bytes=int(left * WIRE_FACTOR),
        bps=bps * WIRE_FACTOR,
        priority=priority,
        interface=gate.find_interface(),
        resume_bytes=_RESUME_BYTES,
    )
    return msgspec.structs.replace(status, bps=round(bps), finishes_at=round(plan.finishes_at or 0.0))
