"""Lines that libraries print at every start and no user can act on: each is suppressed by its own text."""

from __future__ import annotations

import logging
import warnings
from functools import partial

# logger -> the text of a line of it that is suppressed
LOG_LINES = {
    "s3prl.upstream.espnet_hubert.expert": "ESPnet is not installed",
    "torch.utils._pytree": "register_constant() on Enum subclasses is deprecated",  # torchao calls it
}
# start of the text (a regular expression) and category of a warning that is suppressed
WARNINGS = (
    (r".?torch\.jit\.", FutureWarning),  # modules of s3prl use it while they are imported
    (r".?torch\.cuda\.amp\.", FutureWarning),  # s3prl uses it
    (r"Detected call of .?lr_scheduler\.step", UserWarning),  # after a skipped first step, as in s3prl
)


def _is_other_than(text: str, record: logging.LogRecord) -> bool:
    return text not in str(record.msg)


def suppress_known_warnings() -> None:
    """Suppress these lines from now on; everything else of the same loggers and libraries is still printed."""
    for name, text in LOG_LINES.items():
        logger = logging.getLogger(name)
        if not logger.filters:
            logger.addFilter(partial(_is_other_than, text))
    for start, category in WARNINGS:
        warnings.filterwarnings("ignore", message=start, category=category)
