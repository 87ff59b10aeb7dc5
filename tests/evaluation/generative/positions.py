"""A model that has another number of positions."""

from copy import copy, deepcopy

from limbeck.evaluation.generative.model import GenerativeModel


def with_positions(model, positions):
    """A copy of a model whose config says that it has so many."""
    config = deepcopy(model.model.config)
    config.get_text_config().max_position_embeddings = positions
    copied = copy(model.model)
    copied.config = config
    return GenerativeModel(copied, model.processor)
