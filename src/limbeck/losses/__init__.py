"""Loss functions on tensors. They import torch alone, and give one value per element for `masked_mean` to reduce."""
