import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fusmae.model.patches import PatchEmbedding, gather_patches, patchify, unpatchify


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)
)
@settings(max_examples=30, deadline=None)
def test_unpatchify_inverts_patchify(
    batch: int, channels: int, rows: int, cols: int, patch_px: int
) -> None:
    images = torch.randn(batch, channels, rows * patch_px, cols * patch_px)
    tokens = patchify(images, patch_px)
    assert tokens.shape == (batch, rows * cols, channels * patch_px**2)
    assert unpatchify(tokens, patch_px, (rows * patch_px, cols * patch_px)).equal(images)


def test_token_is_the_square_at_its_row_and_column() -> None:
    images = torch.randn(2, 3, 8, 12)  # a grid of 2 x 3 tokens
    tokens = patchify(images, 4)
    for row in range(2):
        for col in range(3):
            square = images[:, :, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4]
            assert tokens[:, 3 * row + col].equal(square.flatten(1))


def test_gathered_patches_are_those_of_patchify() -> None:
    images = torch.randn(2, 3, 8, 12)
    indices = torch.tensor([[0, 4, 5], [3, 1, 2]])
    expected = torch.stack([patchify(images, 4)[b, indices[b]] for b in range(2)])
    assert gather_patches(images, 4, indices).equal(expected)


def test_embedding_of_all_and_of_visible_patches_is_the_strided_convolution() -> None:
    torch.manual_seed(0)
    embedding = PatchEmbedding(channels=3, width=16, patch_px=4)
    torch.nn.init.normal_(embedding.bias)
    images = torch.randn(2, 3, 12, 8)  # a grid of 3 x 2 tokens
    convolved = F.conv2d(images, embedding.weight, embedding.bias, stride=4)
    expected = convolved.flatten(2).transpose(1, 2)
    # float32 sums of 48 products in another order: some 1e-6.
    torch.testing.assert_close(embedding(images), expected, rtol=0, atol=1e-5)
    visible = torch.tensor([[1, 5], [0, 2]])
    chosen = torch.stack([expected[b, visible[b]] for b in range(2)])
    torch.testing.assert_close(embedding(images, visible), chosen, rtol=0, atol=1e-5)


def test_embedding_starts_as_a_xavier_uniform_linear() -> None:
    torch.manual_seed(0)
    embedding = PatchEmbedding(channels=12, width=256, patch_px=8)
    bound = (6 / (12 * 8 * 8 + 256)) ** 0.5  # Glorot and Bengio 2010, fan-in + fan-out
    largest = embedding.weight.abs().max().item()
    assert 0.999 * bound < largest <= bound
    assert not embedding.bias.any()
