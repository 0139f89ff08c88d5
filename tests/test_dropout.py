import pytest
import torch

from idc_lightning.models.dropout import Dropout, seed_draws

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


def test_draws_depend_on_all_numbers_and_nothing_before() -> None:
    def drawn(*numbers: int) -> torch.Tensor:
        torch.rand(3)
        seed_draws(torch.device("cpu"), *numbers)
        return Dropout(0.5)(ONES)

    first = drawn(0, 12, 0)
    assert torch.equal(drawn(0, 12, 0), first)
    for others in ((1, 12, 0), (0, 13, 0), (0, 12, 1), (0, 1, 20), (12, 0, 0)):
        kept = (drawn(*others) != 0) == (first != 0)
        assert float(kept.float().mean()) == pytest.approx(0.5, abs=0.01)


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
