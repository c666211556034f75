import torch

from stages.training.monitoring import Display, Throughput


def test_a_line_of_an_epoch_adds_up(capsys):
    """Epochs are counted from 1; images by their speed give the seconds of the steps, at most those of the epoch."""
    throughput = Throughput(torch.device("cpu"))
    for _ in range(3):
        throughput.count(32)
    _, images = throughput.of_epoch()
    assert images == 96
    display = Display(epochs=15, batches=3, shown=True)
    display.end_epoch({"epoch": 1, "val_loss": 0.25}, 48.0, images, 2.5)
    assert capsys.readouterr().out == "epoch 1/15 val_loss 0.25 (96 images at 48/s; 2.5 s with validation)\n"
    assert throughput.of_epoch()[1] == 0
