import subprocess
import sys

FLUSHED = """
from idc_lightning.cli import prepare_process

prepare_process()
import torch

torch.set_num_threads(2)
tiny = torch.full((2**21,), 1e-39)
print(int((tiny * 0.5).view(torch.int32).count_nonzero()))
"""


def test_no_thread_of_a_command_computes_with_denormal_numbers() -> None:
    printed = subprocess.check_output([sys.executable, "-c", FLUSHED], text=True)
    assert int(printed) == 0
