"""Pictures of data, training and results; each is a file on disk with a caption."""
