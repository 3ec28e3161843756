"""Where files lie and how they are kept: addresses, outputs, copies, locks, caches. What they hold stands elsewhere."""
