"""The doctor: everything of a recipe that can go wrong unseen is looked at before anything trains.

Each check gives a `Finding`. What is looked at is the recipe's own models, tokenizer and data, of which a sample is
read; where the models are too large for the machine, their first layers stand for them (`standin`).
"""

from limbeck.doctor.ctvlm_checks import refuse_unsound
from limbeck.doctor.dlip import refuse_untrained
from limbeck.doctor.examine import examine
from limbeck.doctor.finding import Finding, as_json, failed
from limbeck.doctor.screen import print_findings

__all__ = ["Finding", "as_json", "examine", "failed", "print_findings", "refuse_unsound", "refuse_untrained"]
