"""A plain convolutional network to compare with: what a model with locality built in can do."""

from torch import nn


class SmallCNN(nn.Module):
    """Images (B, C, H, W) -> logits (B, K): six 3 x 3 convolutions in three stages.

    Each convolution is followed by batch norm and ReLU; the first and the second stage end with a
    halving of both sides, the last with the mean over all places, so any H and W from 4 up will
    do. Stages are width, 2 width and 4 width wide:
    9 C w + 279 w^2 + 28 w + 4 w K + K parameters with width w.
    """

    def __init__(self, in_chans=3, num_classes=10, width=32):
        super().__init__()
        layers = []
        for stage in range(3):
            for _ in range(2):
                out_chans = width * 2**stage
                layers += [nn.Conv2d(in_chans, out_chans, 3, padding=1, bias=False),
                           nn.BatchNorm2d(out_chans), nn.ReLU()]  # fmt: skip
                in_chans = out_chans
            layers += [nn.MaxPool2d(2)] if stage < 2 else []
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(in_chans, num_classes)

    def forward(self, x):
        x = self.features(x)  # (B, C, H, W) -> (B, 4 width, H/4, W/4)
        return self.head(x.mean(dim=(2, 3)))  # (B, K)
