"""What is measured of images, features and people, as plain functions of arrays and tensors.

The networks that make such features stand in reid/ and perception/, the tables and pages of results in reporting/.
"""
