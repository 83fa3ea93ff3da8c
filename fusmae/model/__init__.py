"""Fus-MAE: patches, masking, cross-attention encoder and decoder, losses (torch only)."""
