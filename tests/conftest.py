"""What all tests share."""

import torch

# The problems are small: a second thread costs more than it brings, and far more on a machine that is busy.
torch.set_num_threads(1)
