"""
Why does my loss of comparisons not train?
==========================================

*"My loss counts the predictions whose error lies between 0.2 and 0.8. PyTorch says that element 0 of the tensors
does not require grad."*

A comparison is a step function. Its slope is zero or undefined, so no gradient passes through it.
"""

import matplotlib.pyplot as plt
import torch
from shown import open_folder, prompt

folder = open_folder()
(folder / "loss.py").write_text("""import torch
from torch import nn


class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(3, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(x)))


def counted(output, target):
    error = (output - target).abs()
    wrong = (error > 0.2) & (error < 0.8)
    return wrong.float().mean()


def piecewise(output, target):
    error = (output - target).abs()
    inside = (error > 0.2) & (error < 0.8)
    return torch.where(inside, torch.minimum(error - 0.2, 0.8 - error), 0.0).mean()
""")
model = "--model loss.py:Regressor --input-shape 32,3 --target-shape 32,1"
prompt(f"deconv check-grad {model} --loss loss.py:counted", expect=4)

# %%
# The answer is a loss with a slope: zero outside the range, rising towards its middle. The checker finds no fault.

prompt(f"deconv check-grad {model} --loss loss.py:piecewise")

# %%
error = torch.linspace(0, 1, 400)
figure, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
axis.plot(error, ((error > 0.2) & (error < 0.8)).float(), label="counted: slope zero everywhere")
rising = torch.minimum(error - 0.2, 0.8 - error).clamp_min(0)
axis.plot(error, rising, label="piecewise: a slope to follow")
axis.set_xlabel("error of a prediction")
axis.legend(fontsize=8)
