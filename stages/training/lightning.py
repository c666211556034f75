"""SkinLesionClassifier: what the stage trains, as a LightningModule."""

from pytorch_lightning import LightningModule

from stages.training.module import TrainingModule


class SkinLesionClassifier(TrainingModule, LightningModule):
    """A network with what it is trained for, for Lightning's `Trainer`: arguments and methods of `TrainingModule`.

    The stage trains it with `TrainingLoop`, which captures the step as a CUDA graph and resumes after being killed.
    """
