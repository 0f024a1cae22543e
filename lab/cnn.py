"""Plain convolutional networks to compare with: what a model with locality built in can do."""

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


class ResidualBlock(nn.Module):
    """(B, C, H, W) -> (B, out_chans, H/stride, W/stride): two 3 x 3 convolutions and a way around.

    The basic block of "Deep Residual Learning" (arXiv 1512.03385); where the shape changes, the way
    around is a 1 x 1 convolution.
    """

    def __init__(self, in_chans, out_chans, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, out_chans, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_chans)
        self.conv2 = nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_chans)
        self.around = nn.Identity()
        if stride > 1 or in_chans != out_chans:
            conv = nn.Conv2d(in_chans, out_chans, 1, stride, bias=False)
            self.around = nn.Sequential(conv, nn.BatchNorm2d(out_chans))

    def forward(self, x):
        y = self.norm1(self.conv1(x)).relu()
        return (self.around(x) + self.norm2(self.conv2(y))).relu()


class SmallResNet(nn.Module):
    """Images (B, C, H, W) -> logits (B, K): a ResNet of seven convolutions deep.

    A 3 x 3 convolution with stride 2, three blocks, width, 2 width and 4 width wide, of which the
    second and the third halve both sides, the mean over all places, a linear head.
    """

    def __init__(self, in_chans=3, num_classes=10, width=16):
        super().__init__()
        self.stem = nn.Conv2d(in_chans, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            ResidualBlock(width, width),
            ResidualBlock(width, 2 * width, stride=2),
            ResidualBlock(2 * width, 4 * width, stride=2),
        )
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()  # (B, C, H, W) -> (B, width, H/2, W/2)
        x = self.blocks(x)  # -> (B, 4 width, H/8, W/8)
        return self.head(x.mean(dim=(2, 3)))  # (B, K)
