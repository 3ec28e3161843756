"""What flows in and out: units and shards, manifests, image trees, the toy crowd."""
