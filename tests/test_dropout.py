import pytest
import torch

from idc_lightning.models.dropout import Dropout

ONES = torch.ones(400, 256)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.9])
def test_a_share_is_dropped_and_the_mean_stays(p: float) -> None:
    torch.manual_seed(0)
    out = Dropout(p)(ONES)
    assert float((out == 0).float().mean()) == pytest.approx(p, abs=0.01)
    assert torch.unique(out).tolist() == pytest.approx(
        [0, 1 / (1 - p)][1 if p == 0 else 0 :], rel=1e-6
    )
    assert float(out.mean()) == pytest.approx(1, abs=0.03)


def test_draws_follow_the_seed_and_differ_from_call_to_call() -> None:
    layer = Dropout(0.5)
    torch.manual_seed(1)
    first, second = layer(ONES), layer(ONES)
    torch.manual_seed(1)
    assert torch.equal(layer(ONES), first)
    assert not torch.equal(first, second)


def test_gradients_pass_where_values_are_kept() -> None:
    torch.manual_seed(0)
    values = torch.randn(50, 20, requires_grad=True)
    out = Dropout(0.4)(values)
    out.sum().backward()
    torch.testing.assert_close(values.grad, torch.where(out != 0, 1 / 0.6, 0.0))


def test_nothing_is_dropped_in_evaluation() -> None:
    assert torch.equal(Dropout(0.9).eval()(ONES), ONES)


def test_bfloat16_stays_bfloat16() -> None:
    assert Dropout(0.5)(ONES.bfloat16()).dtype == torch.bfloat16
