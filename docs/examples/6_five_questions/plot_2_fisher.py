"""
Why is my Fisher information zero?
==================================

*"I compute the diagonal of the Fisher matrix from squared gradients, and every entry is zero or None. I wrap the
loss in a Variable so that it requires a gradient."*

Wrapping the loss makes a new leaf. ``backward()`` ends there, and no weight gets a gradient.
"""

import matplotlib.pyplot as plt
from safetensors.torch import load_file
from shown import open_folder, prompt

folder = open_folder()
(folder / "train.py").write_text("""import torch
from torch import nn
from torch.autograd import Variable

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 36, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.randn(8, 1, 16, 16), torch.arange(8)
for _ in range(2):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss = Variable(loss, requires_grad=True)
    loss.backward()
    fisher = [p.grad ** 2 if p.grad is not None else None for p in model.parameters()]
    optimizer.step()
""")

# %%
# Run the script under the checker, without an edit. The checker finds the line, and says what to write instead. Exit
# code 4 means that a check found a fault.

prompt("deconv check-grad --run train.py", expect=4)

# %%
# There is a second mistake in the script: the square of the gradient of a batch mean is not the mean of the squared
# gradients. ``deconv fisher`` averages squared gradients sample by sample, and shows the difference.

prompt(
    "deconv fisher sample_images/network.safetensors --model sample_images/network.py:Network "
    "--data sample_images/patches.safetensors --loss cross-entropy -o fisher.safetensors"
)

# %%
# The file holds one number for each weight. The sums over each parameter show where the data determine the network:

fisher = load_file(folder / "fisher.safetensors")
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.barh(list(fisher), [float(part.sum()) for part in fisher.values()])
axis.invert_yaxis()
axis.set_xscale("log")
axis.set_xlabel("sum of the Fisher diagonal")
