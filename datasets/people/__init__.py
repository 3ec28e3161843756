"""Pictures of real people: listings, decoding, splits, a reader for each data set. Generated people stand in runs/."""
