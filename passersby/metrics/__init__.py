"""Measures of images, features and people, as plain functions of arrays and tensors.

The networks that compute features are in reid/ and perception/; tables and pages of results are in reporting/.
"""
