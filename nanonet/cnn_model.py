"""The CNN student under the name that saved students and their documentation use: `import nanonet.cnn_model`."""

from nanonet.models.cnn import CnnConfig, CnnForSequenceClassification

__all__ = ["CnnConfig", "CnnForSequenceClassification"]
