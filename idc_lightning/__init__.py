"""Train and judge classifiers of invasive ductal carcinoma in breast-tissue patches."""

__version__ = "0.1.0"
