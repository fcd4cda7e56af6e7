"""Screens against poisoned training samples, one a module; a new module here is found by itself."""

from nnsec.poisoning.base import REASONS, Pattern
from nnsec.poisoning.sheet import Rated, Screened
from nnsec.poisoning.suite import ScreenSuite
from nnsec.poisoning.window import SourceWindow

__all__ = ["REASONS", "Pattern", "Rated", "ScreenSuite", "Screened", "SourceWindow"]
