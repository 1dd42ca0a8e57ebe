"""Lines that libraries print at every start and no user can act on: each is suppressed by its own text."""

from __future__ import annotations

import logging
import warnings

# logger -> the text of a line of it that is suppressed
LINES = {
    "s3prl.upstream.espnet_hubert.expert": "ESPnet is not installed",
    "torch.utils._pytree": "register_constant() on Enum subclasses is deprecated",  # torchao calls it
}
# the start of a FutureWarning that s3prl's imports cause
FUTURE = (r".?torch\.jit\.", r".?torch\.cuda\.amp\.")


def _other_than(text: str) -> logging.Filter:
    line = logging.Filter()
    line.filter = lambda record: text not in str(record.msg)
    return line


def suppress_known_warnings() -> None:
    """Suppress these lines from now on; everything else of the same loggers and libraries is still printed."""
    for name, text in LINES.items():
        logger = logging.getLogger(name)
        if not logger.filters:
            logger.addFilter(_other_than(text))
    for start in FUTURE:
        warnings.filterwarnings("ignore", message=start, category=FutureWarning)
