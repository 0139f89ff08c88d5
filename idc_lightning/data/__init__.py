"""From a folder of patches to batches: index, split, store, augmentation, data module."""
