"""The network, its pretrained weights and frozen statistics."""
