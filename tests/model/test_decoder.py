import plain_algebra as plain
import pytest
import torch

from fusmae.config import ModelConfig
from fusmae.model.decoder import SensorDecoder, XAttnDecoder
from fusmae.model.positions import sincos_2d

CONFIG = ModelConfig(
    image_px=16,
    patch_px=4,
    width=16,
    depth=2,
    heads=4,
    decoder_width=8,
    decoder_depth=2,
    decoder_heads=2,
)
VISIBLE = torch.tensor([[0, 3, 9, 15], [1, 2, 5, 6]])
MASKED = torch.tensor([[t for t in range(16) if t not in row] for row in VISIBLE.tolist()])


def test_xattn_decoder_equals_eqs_10_and_11_in_plain_algebra() -> None:
    decoder = XAttnDecoder(["s1", "s2"], CONFIG).double()
    plain.randomise(decoder, seed=0)
    weights = dict(decoder.state_dict())
    z = {"s1": torch.randn(2, 5, 16).double(), "s2": torch.randn(2, 7, 16).double()}
    fused = decoder(z)
    for sensor, other in (("s1", "s2"), ("s2", "s1")):
        w = plain.under(weights, f"cross.attention.{sensor}")
        expected = z[sensor] + plain.cross_attention(z[sensor], z[other], w, heads=4)
        normed = plain.norm(expected, plain.under(weights, f"norm.{sensor}"))
        expected = expected + plain.mlp(normed, plain.under(weights, f"mlp.{sensor}"))
        # float64, values up to some 1e2: rounding stays below 1e-11.
        torch.testing.assert_close(fused[sensor], expected, rtol=1e-12, atol=1e-11)


def test_xattn_decoder_of_an_absent_sensor_skips_only_its_cross_attention() -> None:
    decoder = XAttnDecoder(["s1", "s2"], CONFIG).double()
    plain.randomise(decoder, seed=0)
    weights = dict(decoder.state_dict())
    z = torch.randn(2, 5, 16).double()
    normed = plain.norm(z, plain.under(weights, "norm.s2"))
    expected = z + plain.mlp(normed, plain.under(weights, "mlp.s2"))
    torch.testing.assert_close(decoder({"s2": z})["s2"], expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("predict_visible", [False, True])
def test_sensor_decoder_equals_mae_with_tokens_put_back_in_grid_order(
    predict_visible: bool,
) -> None:
    decoder = SensorDecoder(3 * 4 * 4, CONFIG).double()
    plain.randomise(decoder, seed=0)
    weights = dict(decoder.state_dict())
    latents = torch.randn(2, 4, 16).double()
    x = plain.light_decoder(latents, VISIBLE, sincos_2d(4, 4, 8).double(), weights, heads=2)
    wanted = torch.cat([VISIBLE, MASKED], dim=1) if predict_visible else MASKED
    expected = torch.stack([x[b, wanted[b]] for b in range(2)])
    ours = decoder(latents, VISIBLE, MASKED, (4, 4), predict_visible)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-10)
