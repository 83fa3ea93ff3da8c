"""Shares of attention between sensors: the maps that the model really uses, counted by hand."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.nn import functional as F

from fusmae.config import Fusion
from fusmae.evaluation.attention import group_shares, main, measure_attention
from fusmae.model import EncoderCard, FusMAEEncoder
from fusmae.model.attention import CrossAttention, SelfAttention

from .test_report import MODEL, write_run


def split_heads(x: Tensor, heads: int) -> Tensor:
    return torch.stack(x.chunk(heads, dim=-1), dim=1)


def test_the_weights_give_the_output_that_sdpa_gives() -> None:
    torch.manual_seed(0)
    x, context = torch.randn(3, 7, 16), torch.randn(3, 5, 16)
    own, cross = SelfAttention(16, 4), CrossAttention(16, 4)
    v = split_heads(F.linear(x, own.qkv.weight[32:], own.qkv.bias[32:]), 4)
    joined = torch.cat((own.weights(x) @ v).unbind(1), dim=-1)
    torch.testing.assert_close(own.proj(joined), own(x), rtol=1e-4, atol=1e-5)
    kv = F.linear(cross.context_norm(context), cross.kv.weight[16:], cross.kv.bias[16:])
    weights = cross.weights(x, context)
    assert weights.shape == (3, 4, 7, 5)
    joined = torch.cat((weights @ split_heads(kv, 4)).unbind(1), dim=-1)
    torch.testing.assert_close(cross.proj(joined), cross(x, context), rtol=1e-4, atol=1e-5)


def test_shares_are_counted_entry_by_entry() -> None:
    weights = torch.rand(2, 3, 6, 6).softmax(-1)
    groups = [0, 0, 0, 1, 1, 2]  # of 3, 2 and 1 tokens
    shares = group_shares(weights, (3, 2, 1))
    for sample in range(2):
        for x in range(3):
            for y in range(3):
                rows = [row for row in range(6) if groups[row] == x]
                total = sum(
                    weights[sample, head, row, column].item()
                    for head in range(3)
                    for row in rows
                    for column in range(6)
                    if groups[column] == y
                )
                assert shares[sample, x, y].item() == pytest.approx(total / 3 / len(rows))


def images_of(card: EncoderCard, count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {s: torch.randn(count, c, 12, 12, generator=generator) for s, c in card.channels.items()}


@pytest.mark.parametrize("fusion", ["none", "xad", "xae_xad", "xae"])
def test_without_queries_and_keys_all_attention_is_uniform(
    card: EncoderCard, fusion: Fusion
) -> None:
    """9 tokens a sensor and the global one: 9/19 goes to the other sensor, wherever one looks."""
    encoder = FusMAEEncoder(dataclasses.replace(card.model, fusion=fusion), card.channels)
    for block in encoder.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight[:32])
    blocks = measure_attention(encoder, [images_of(card, 3)])
    assert [block.block for block in blocks] == ([2] if "xae" in fusion else [1, 2])
    for block in blocks:
        assert block.others == pytest.approx({"s1": 9 / 19, "s2": 9 / 19}, abs=1e-6)
        assert block.uniform == pytest.approx(block.others, abs=1e-6)
        assert block.to["global"]["global"] == pytest.approx(1 / 19, abs=1e-6)


def test_a_block_diagonal_map_is_found_and_batches_do_not_matter(card: EncoderCard) -> None:
    """Queries and keys that tell nothing but the sensor: weight e^t to the own, 1 to the other."""
    config = dataclasses.replace(card.model, fusion="none", depth=1, heads=1, width=16)
    encoder = FusMAEEncoder(config, card.channels)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        encoder.positions.table.zero_()
        # The first feature is +1 for s1 and -1 for s2; 0 for the global token.
        for sensor, sign in (("s1", 1.0), ("s2", -1.0)):
            encoder.patch_embed[sensor].bias[0] = sign
        attention = encoder.blocks[0].attn
        attention.qkv.weight[0, 0] = attention.qkv.weight[16, 0] = 2.0
        encoder.blocks[0].norm1 = torch.nn.Identity()  # type: ignore[assignment]
    logit = 2.0 * 2.0 / math.sqrt(16)
    weights = {"own": 9 * math.exp(logit), "other": 9 * math.exp(-logit), "global": 1.0}
    expected = weights["other"] / sum(weights.values())
    images = images_of(card, 5)
    (whole,) = measure_attention(encoder, [images])
    assert whole.others == pytest.approx({"s1": expected, "s2": expected}, rel=1e-5)
    parts = [{s: x[a:b] for s, x in images.items()} for a, b in ((0, 2), (2, 5))]
    (halves,) = measure_attention(encoder, parts)
    assert halves.others == pytest.approx(whole.others, rel=1e-6)


def test_the_command_writes_the_shares_of_every_block(dataset: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = dataclasses.replace(MODEL, fusion="xad")
    write_run(tmp_path / "run", dataset, model)
    done = CliRunner().invoke(main, [str(tmp_path / "run"), "--data", str(dataset)])
    assert done.exit_code == 0, done.output
    assert "block 2: to other sensors (if uniform): s1 " in done.output
    table = json.loads((tmp_path / "run" / "attention.json").read_text())
    facts = {key: table[key] for key in ("format", "fusion", "step", "split", "num_samples")}
    assert list(facts.values()) == ["fusmae-attention", "xad", 7, "val", 19]
    for block in table["blocks"]:
        for row in block["to"].values():
            assert sum(row.values()) == pytest.approx(1)
        assert block["others"]["s1"] == block["to"]["s1"]["s2"]
        assert block["uniform"]["s1"] == pytest.approx(16 / 33)


@pytest.mark.parametrize("fusion", ["late", "stack"])
def test_an_encoder_without_joint_attention_is_refused(
    dataset: Path, tmp_path: Path, fusion: Fusion
) -> None:
    write_run(tmp_path / "run", dataset, dataclasses.replace(MODEL, fusion=fusion))
    done = CliRunner().invoke(main, [str(tmp_path / "run"), "--data", str(dataset)])
    assert done.exit_code == 1 and "no joint self-attention" in done.output
    assert not (tmp_path / "run" / "attention.json").exists()
