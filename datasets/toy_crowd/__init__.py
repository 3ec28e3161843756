"""The toy crowd: people drawn by a program, and the tree of their pictures. Photographs are in people/."""
