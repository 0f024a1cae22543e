"""What the notebooks build, collected: the model, the images, the training, the pictures."""
