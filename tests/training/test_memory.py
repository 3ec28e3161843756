"""The rule for images in memory."""

from training.memory import available_memory, fits


def test_images_stay_in_memory_up_to_half_of_what_there_is():
    image = 64 * 32 * 3
    assert fits(1000, 64, 32, available=2000 * image)
    assert not fits(1001, 64, 32, available=2000 * image)
    # Shared through Ray, the smallest object store counts, and so does the driver's memory, where they are decoded.
    assert fits(1000, 64, 32, available=10_000 * image, object_store=2000 * image)
    assert not fits(1001, 64, 32, available=10_000 * image, object_store=2000 * image)
    assert not fits(1001, 64, 32, available=2000 * image, object_store=10_000 * image)
    assert not fits(1, 64, 32, available=0)


def test_memory_is_counted_in_bytes():
    assert 1 << 26 < available_memory() < 1 << 50
