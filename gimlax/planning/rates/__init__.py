"""How long one operation takes on one device: measured here, fitted to measurements, or by card."""

from gimlax.planning.rates.choosing import (
    card_for,
    collectives_for,
    rates_for,
    reads_on_chip,
)
from gimlax.planning.rates.collectives import Collectives
from gimlax.planning.rates.fitted import Fitted
from gimlax.planning.rates.roofline import Roofline
from gimlax.planning.rates.seam import CARD, DECLARED, FITTED, MEASURED, Rates

__all__ = [
    "CARD",
    "DECLARED",
    "FITTED",
    "MEASURED",
    "Collectives",
    "Fitted",
    "Rates",
    "Roofline",
    "card_for",
    "collectives_for",
    "rates_for",
    "reads_on_chip",
]
