"""Libraries kept from talking past the user: hints meant for who calls them, and bars where there is no terminal."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Errors still come through; what a user can act on is checked for and said by this package itself."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    hide_bars = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    logging.set_verbosity_error()
    if hide_bars:
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(transformers|peft|accelerate|torch)(\.|$)")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if hide_bars:
            logging.enable_progress_bar()
