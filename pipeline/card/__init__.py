"""What the card of a network says: which layers hold the pose of its people, and whether these people can teach.

Everything is measured on people of the network in this process, without Ray. The file itself is datasets/runs/card.py.
"""
