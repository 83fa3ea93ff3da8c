"""fusmae: sharded SAR and optical datasets, and the Fus-MAE masked autoencoder.

Importing this package imports nothing heavy; each part is imported by name:
`fusmae.data` (streaming), `fusmae.model`, `fusmae.training`, `fusmae.evaluation`.
"""

__version__ = "0.1.0"
