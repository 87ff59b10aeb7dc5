"""What the command line tells in one line, without a traceback. Imports nothing heavy: it can always be told."""

from threading import Event

TRAINING_BEGAN = Event()
"""Set once a run trains or works on what it has trained: what fails from then on is no mistake of the recipe's."""


class WrongInput(Exception):
    """A recipe, a record, a prompt file that cannot be used; the message names it and what would be right."""


class Halted(Exception):
    """A run that cannot go on for a reason outside of it; what was done is kept, and the same command goes on."""
