"""fusmae-ingest: GeoTIFF archives to WebDataset shards and zarr stores; imports no torch."""
