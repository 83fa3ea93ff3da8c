"""Downstream protocols: probes, whole-split metrics, report pages."""
