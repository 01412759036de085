"""LeNet-5 (LeCun et al., 1998), to be saved whole by torch.save, and the loss that was wrapped again."""

import torch
from torch import nn
from torch.autograd import Variable


class LeNet5(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = torch.relu(self.fc1(x.flatten(1)))
        return self.fc3(torch.relu(self.fc2(x)))


def wrapped_loss(output, target):
    loss = nn.functional.cross_entropy(output, target)
    loss = Variable(loss, requires_grad=True)  # blame: wrapped
    return loss


def wrapped_as_tensor(output, target):
    loss = nn.functional.cross_entropy(output, target)
    return torch.tensor(loss, requires_grad=True)  # blame: tensor


def wrapped_as_parameter(output, target):
    loss = nn.functional.cross_entropy(output, target)
    return nn.Parameter(loss)  # blame: parameter


def cured_loss(output, target):
    loss = nn.functional.cross_entropy(output, target)
    return loss
