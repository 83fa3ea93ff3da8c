"""Encoders on the Hugging Face hub: fetched by `hf://owner/name`, pushed as one commit.

Only `huggingface_hub` talks to the hub; tokens, caches and mirrors are its own settings.
"""

from pathlib import Path

from fusmae.model.pretrained import CONFIG_NAME, WEIGHTS_NAME, EncoderCard, load_encoder

_SCHEME = "hf://"
_FILES = (CONFIG_NAME, WEIGHTS_NAME)


def fetch_folder(source: str | Path) -> Path:
    """The folder of an encoder: `source` itself, or the files of `hf://owner/name[@revision]`.

    Of a repository only the card and the safetensors are fetched, both of one commit, into
    huggingface_hub's cache; offline, what lies there is used.

    Raises:
        ValueError: the address is wrong, or the repository cannot be had.
    """
    if not str(source).startswith(_SCHEME):
        return Path(source)
    name, _, revision = str(source).removeprefix(_SCHEME).partition("@")
    if len(name.split("/")) != 2 or not all(name.split("/")):
        raise ValueError(f"{source}: expected hf://owner/name or hf://owner/name@revision")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(f"{source} needs huggingface_hub: pip install 'fusmae[encoder]'") from None
    try:
        kept = list(_FILES)
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=kept))
    except Exception as error:
        if not _is_hubs(error):
            raise
        raise ValueError(f"cannot fetch {source}: {_first_line(error)}") from None


def push_to_hub(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Push an exported encoder to the model repository `owner/name`; the commit's URL.

    The repository is made if it is not there. Card, safetensors and a README that states bands,
    normalisation, data and licence go in one commit. Log in first: `hf auth login`.

    Raises:
        ValueError: the folder holds no whole encoder, or the hub refuses.
    """
    folder = Path(folder)
    _, card = load_encoder(folder)
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
    except ImportError:
        raise ValueError("pushing needs huggingface_hub: pip install 'fusmae[encoder]'") from None
    files = [CommitOperationAdd(name, folder / name) for name in _FILES]
    readme = CommitOperationAdd("README.md", describe_card(card, repository).encode())
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(
            repository, [readme, *files], commit_message="Fus-MAE encoder, exported by fusmae"
        )
    except Exception as error:
        if not _is_hubs(error):
            raise
        raise ValueError(f"cannot push {folder} to {repository}: {_first_line(error)}") from None
    return str(commit.commit_url)


def _is_hubs(error: Exception) -> bool:
    """Whether the hub, the way to it or a name is to blame.

    The client lets errors of its HTTP library through, which another release changes: by their
    module's name.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    expected = isinstance(error, HfHubHTTPError | HFValidationError | OSError)
    return expected or type(error).__module__.startswith("httpx")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def describe_card(card: EncoderCard, repository: str) -> str:
    """The README of an encoder's repository: Hugging Face front matter, then the facts."""
    model = card.model
    warning = "\nThe images were **simulated**: the weights know nothing of real ones.\n"
    split = f", split `{card.split}`" if card.split else ""
    rule = f" ({card.split_rule} rule)" if card.split_rule else ""
    tuned = f"\nThe whole encoder was fine-tuned since: {card.tuned_on}.\n" if card.tuned_on else ""
    rows = [
        f"| {sensor} | {band} | {mean:g} | {std:g} |"
        for sensor, names in card.bands.items()
        for band, mean, std in zip(names, card.mean[sensor], card.std[sensor], strict=True)
    ]
    sensor, names = next(iter(card.bands.items()))
    return f"""---
library_name: fusmae
pipeline_tag: image-feature-extraction
tags:
- remote-sensing
- sentinel-1
- sentinel-2
- masked-autoencoder
---
# Fus-MAE encoder, {model.preset}

Fus-MAE (Chan-To-Hing and Veeravalli, IGARSS 2024), fusion `{model.fusion}`: width {model.width},
depth {model.depth}, {model.heads} heads, tokens of {model.patch_px} px, trained on images of
{model.image_px} px.

```python
import fusmae

encoder = fusmae.load_encoder("hf://{repository}", size_px={model.image_px})
features = encoder.pooled({{"{sensor}": images}})  # (B, {len(names)}, H, W) in stored units
```

Pretrained without labels on {card.dataset}{split}{rule}; licence of the data: {card.licence}.
{tuned}{warning if card.simulated else ""}
Channels in this order, normalised by these numbers in stored units:

| sensor | band | mean | std |
|---|---|---|---|
{chr(10).join(rows)}
"""
